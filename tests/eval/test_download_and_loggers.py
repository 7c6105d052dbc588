"""``--download`` from a hub, and the scores where training's curves are."""

import json
import os
import subprocess
import sys
from pathlib import Path

from hub_server import REVISION, hub
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_model import MODEL

MMVP = "MMVP/MMVP"


def release(folder: Path) -> Path:
    """MMVP's own layout: two pairs."""
    (folder / "MMVP Images").mkdir(parents=True)
    lines = ["lndex,Question,Options,Correct Answer"]
    for number in range(1, 5):
        lines.append(f'{number},Which way does it face?,"(a) left (b) right",({"ab"[number % 2]})')
        Image.new("RGB", (40, 30), (60 * number, 20, 40)).save(folder / "MMVP Images" / f"{number}.jpg")
    (folder / "Questions.csv").write_text("\n".join(lines) + "\n")
    return folder


def evaluate(data: Path, output: Path, endpoint: str, *more: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: huggingface_hub reads its hub's address when it is imported."""
    command = ["eval", "mmvp", *MODEL, "--data", str(data), "--output", str(output), *more]
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    program = [sys.executable, "-c", "import sys; from llava_s2.cli import main; sys.exit(main())"]
    return subprocess.run([*program, *command], env=environment, capture_output=True, text=True, timeout=300)


def test_a_benchmark_is_fetched_its_revision_reported_and_its_scores_logged(tmp_path):
    data, output = tmp_path / "data", tmp_path / "run"
    with hub(MMVP, release(tmp_path / "release")) as endpoint:
        done = evaluate(data, output, endpoint, "--download", "--report_to", "tensorboard")
    assert done.returncode == 0, done.stderr[-3000:]
    assert (data / "Questions.csv").read_bytes() == (tmp_path / "release" / "Questions.csv").read_bytes()
    report = json.loads((output / "report.json").read_text())
    assert REVISION in json.dumps(report)
    logged = EventAccumulator(str(output / "tensorboard")).Reload()
    scores = {tag: logged.Scalars(tag)[0].value for tag in logged.Tags()["scalars"]}
    rows = report["results"]
    assert scores and all(abs(scores[f"mmvp/{name}"] - row["accuracy"]) < 1e-6 for name, row in rows.items())


def test_a_hub_that_lacks_it_or_cannot_be_reached_is_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    with hub("another/set", tmp_path / "empty") as endpoint:
        missing = evaluate(tmp_path / "data", tmp_path / "run", endpoint, "--download")
    gone = evaluate(tmp_path / "data", tmp_path / "run", endpoint, "--download")
    for done in (missing, gone):
        assert done.returncode == 2
        assert f"{MMVP}: cannot be downloaded" in done.stderr and "Traceback" not in done.stderr
