"""The quickstart at its smallest, on the real embedded default: the main job, end to end."""

import json
import os
import shlex
import shutil
from pathlib import Path

import pytest
from PIL import Image

from llava_s2.cli import main
from llava_s2.model.embedded import default_model

SMALL = ["--images", "20", "--attributes", "4", "--relations", "2"]


def content(folder: Path) -> dict[str, bytes]:
    """Every file below the folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_quickstart_fine_tunes_scores_answers_and_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = default_model()
    assert main(["quickstart", *SMALL]) == 0
    printed = capfd.readouterr().out
    out = tmp_path / "playground" / "quickstart"

    for twin, scales in (("single", [112]), ("s2", [112, 224, 448])):
        model = out / "models" / twin
        assert json.loads((model / "base" / "config.json").read_text())["vision_config"]["scales"] == scales
        losses = [
            row["loss"]
            for row in json.loads((model / "trainer_state.json").read_text())["log_history"]
            if "loss" in row
        ]
        assert losses and all(loss > 0 for loss in losses)
    reports = {
        name: json.loads((out / "runs" / name / "report.json").read_text()) for name in ("single", "s2", "text_only")
    }
    for report in reports.values():
        assert report["results"]["overall"]["count"] == 6
        assert report["results"]["direct_attributes"]["count"] == 4
    single, s2 = (reports[name]["results"]["overall"]["correct"] / 6 for name in ("single", "s2"))
    compared = next(
        line.split() for line in printed.splitlines() if line.startswith("overall ") and "%" in line.split()[2]
    )
    assert compared[1:5] == ["6", f"{single:.1%}", f"{s2:.1%}", f"{100 * (s2 - single):+.1f}"]
    # A question is shown with both models' answers, each as it was scored.
    scored = {
        name: {
            record["question_id"]: record
            for record in map(json.loads, (out / f"runs/{name}_large/predictions.jsonl").read_text().splitlines())
        }
        for name in ("single", "s2")
    }
    with Image.open(out / "answer.png") as drawn:
        assert drawn.size[0] > 1200 and drawn.format == "PNG"
    *_, single_line, s2_line, _, _, chat, demo, check = printed.splitlines()
    differing = [key for key in scored["s2"] if scored["s2"][key]["correct"] and not scored["single"][key]["correct"]]
    if differing:
        assert single_line.endswith("(wrong)") and s2_line.endswith("(right)")
        assert (
            scored["s2"][min(differing)]["text"] in s2_line and scored["single"][min(differing)]["text"] in single_line
        )

    # The three commands can be pasted: each names a program that is there and arguments that parse.
    for line, action in ((chat, "chat"), (demo, "demo"), (check, "data")):
        program, *words = shlex.split(line)
        assert shutil.which(program) and words[0] == action
    assert main(shlex.split(check)[1:]) == 0
    assert main(shlex.split(chat)[1:]) == 0
    assert capfd.readouterr().out.strip()

    # What it left is what chat uses, from the folder it was started in.
    assert default_model() == Path("playground/quickstart/models/s2") != shipped

    before = content(out)
    os.truncate(out / "runs/s2/predictions.jsonl", (out / "runs/s2/predictions.jsonl").stat().st_size - 30)
    (out / "runs/s2/report.json").unlink()
    assert main(["quickstart", *SMALL]) == 0
    after = content(out)
    assert {name: data for name, data in after.items() if name.startswith(("models", "data"))} == {
        name: data for name, data in before.items() if name.startswith(("models", "data"))
    }
    assert after["runs/single/predictions.jsonl"] == before["runs/single/predictions.jsonl"]
    again = json.loads(after["runs/s2/report.json"])
    assert again["results"] == reports["s2"]["results"]

    capfd.readouterr()
    for others in (["--images", "21"], [*SMALL, "--seed", "1"]):
        assert main(["quickstart", *others]) == 2
        assert "other numbers" in capfd.readouterr().err
    for flag in ("--seed", "--images", "--relations"):
        assert main(["quickstart", "--output", "other", flag, "-1"]) == 2
        assert f"{flag} -1" in capfd.readouterr().err and not Path("other").exists()
