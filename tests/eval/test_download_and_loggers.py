"""``--download`` from a hub, and the scores where training's curves are."""

import base64
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
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


def evaluate(
    data: Path, output: Path, endpoint: str, *more: str, task: str = "mmvp"
) -> subprocess.CompletedProcess[str]:
    """In a process of its own: huggingface_hub reads its hub's address when it is imported."""
    command = ["eval", task, *MODEL, "--data", str(data), "--output", str(output), *more]
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


def picture(format: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), (90, 20, 40)).save(file, format)
    return file.getvalue()


def test_only_the_files_of_the_variant_that_is_asked_for_are_fetched(tmp_path):
    release = tmp_path / "release"
    release.mkdir()
    cells = ("1", "Which?", "red", "blue", "A", "single", base64.b64encode(picture()).decode())
    for size in ("4k", "8k"):
        rows = ("index\tquestion\tA\tB\tanswer\tcategory\timage", "\t".join((*cells[:1], f"{size}?", *cells[2:])))
        (release / f"hr_bench_{size}.tsv").write_text("\n".join(rows) + "\n")
        (release / f"hr_bench_{size}.parquet").write_bytes(b"the same once more")
    data, output = tmp_path / "data", tmp_path / "run"
    with hub("DreamMr/HR-Bench", release) as endpoint:
        done = evaluate(data, output, endpoint, "--download", "--variant", "8k", task="hrbench")
    assert done.returncode == 0, done.stderr[-3000:]
    assert [path.name for path in data.iterdir() if path.name.startswith("hr_bench")] == ["hr_bench_8k.tsv"]
    report = json.loads((output / "report.json").read_text())
    assert report["variant"] == "8k" and REVISION in report["data_revision"]


@pytest.mark.parametrize("folder", ["SEED-Bench-image/", ""])
def test_a_zip_file_is_unpacked(tmp_path, folder):
    release = tmp_path / "release"
    release.mkdir()
    question = {f"choice_{letter}": letter for letter in "abcd"} | {"answer": "A", "question": "Which?"}
    image = question | {"question_id": "1", "question_type_id": 1, "data_type": "image", "data_id": "1_2.jpg"}
    video = question | {"question_id": "2", "question_type_id": 2, "data_type": "video", "data_id": "v.mp4"}
    questions = {"questions": [image, video], "question_type": {"Scene Understanding": 1, "Action Recognition": 2}}
    (release / "SEED-Bench.json").write_text(json.dumps(questions))
    with zipfile.ZipFile(release / "SEED-Bench-image.zip", "w") as packed:
        packed.writestr(f"{folder}1_2.jpg", picture())
    data, output = tmp_path / "data", tmp_path / "run"
    with hub("AILab-CVC/SEED-Bench", release) as endpoint:
        done = evaluate(data, output, endpoint, "--download", task="seedbench")
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((output / "report.json").read_text())
    assert report["variant"] == "image" and report["results"]["overall"]["count"] == 1


def test_a_variant_that_is_on_no_hub_is_one_line(tmp_path):
    done = evaluate(
        tmp_path / "d", tmp_path / "run", "http://127.0.0.1:9", "--download", "--variant", "dev-en-v11", task="mmbench"
    )
    assert done.returncode == 2 and "mmbench, variant dev-en-v11, is not on the hub" in done.stderr
