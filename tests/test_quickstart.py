"""The quickstart at its smallest, on the real embedded default: the main job, end to end."""

import json
import os
from pathlib import Path

import pytest

from llava_s2.cli import main
from llava_s2.model.embedded import default_model

SMALL = ["--pictures", "20", "--attributes", "4", "--relations", "2"]


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

    for twin, scales in (("single", [112]), ("s2", [112, 224, 336])):
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
    comparison = next(json.loads(line) for line in printed.splitlines() if line.startswith('{"'))
    difference = reports["s2"]["results"]["overall"]["correct"] - reports["single"]["results"]["overall"]["correct"]
    assert comparison["results"]["overall"]["difference"] == pytest.approx(difference / 6)
    assert "Done in" in printed and "llava-s2 chat" in printed

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
    assert main(["quickstart", "--pictures", "21"]) == 2
    assert "other numbers" in capfd.readouterr().err
