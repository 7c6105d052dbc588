"""``llava-s2 report`` and the files that ``llava-s2 eval`` leaves for people."""

import json
import re

import pytest
from PIL import Image
from tiny_model import MODEL
from vqa_data import write_vqav2
from vstar_data import write_vstar

from llava_s2 import cli
from llava_s2.eval.statistics import wilson_interval


def tables(text):
    """The cells of each row of each table."""
    blocks = re.findall(r"(?:^\|.*\|\n?)+", text, re.MULTILINE)
    return [[[c.strip() for c in line.strip("|").split(" | ")] for line in block.splitlines()] for block in blocks]


@pytest.fixture
def runs(tmp_path, loads):
    """Two runs of V* (with and without images) and one of VQAv2."""
    vstar, vqa = write_vstar(tmp_path / "vstar"), write_vqav2(tmp_path / "vqa")
    jobs = {"vstar/full": ["vstar", vstar], "vstar/blind": ["vstar", vstar, "--text-only"], "vqa/full": ["vqav2", vqa]}
    for name, (task, data, *more) in jobs.items():
        where = ["--data", str(data), "--output", str(tmp_path / "runs" / name)]
        assert cli.main(["eval", task, *MODEL, *where, *more]) == 0
    return [tmp_path / "runs" / name for name in jobs]


def test_runs_side_by_side(runs, tmp_path, capsys):
    out = tmp_path / "both"
    assert cli.main(["report", *map(str, runs), "--output", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [str(out / "report.md"), str(out / "report.png")]
    with Image.open(out / "report.png") as picture:
        assert picture.width > 400 and len(picture.convert("L").getcolors()) > 10
    text = (out / "report.md").read_text()
    scores, paired, settings, vqa_scores, vqa_settings = tables(text)
    assert scores[0] == ["category", "questions", "vstar/full", "vstar/blind"]
    reports = [json.loads((run / "report.json").read_text()) for run in runs]
    for row in scores[2:]:
        category = row[0].strip("*")
        for report, cell in zip(reports[:2], row[2:], strict=True):
            correct, count = (report["results"][category][key] for key in ("correct", "count"))
            low, high = wilson_interval(correct, count)
            assert cell == f"{100 * correct / count:.1f} ({100 * low:.1f} to {100 * high:.1f})"
            assert row[1] == str(count)
    assert paired[2][:2] == ["vstar/blind", "vstar/full"]
    assert cli.main(["compare", str(runs[0]), str(runs[1])]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]["overall"]
    assert paired[2][2] == f"{100 * found['difference']:+.1f}" and paired[2][-1] == f"{found['p']:.2g}"
    about = {row[0]: row[1:] for row in settings}
    assert about["protocol"][1].endswith("without the image") and about["dtype"] == ["float32"] * 2
    assert about["image mode"] == ["pad"] * 2 and "torch " in about["versions"][0]
    assert vqa_scores[0][2] == "vqa/full" and len(vqa_settings) > 5


def test_eval_leaves_a_document_beside_its_report(runs):
    for run in runs:
        assert (run / "report.md").read_text().count("## ") == 1 and (run / "report.png").stat().st_size > 1000


def test_half_precision_tells_its_near_ties(runs, tmp_path, capsys):
    path = runs[0] / "report.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": "bfloat16", "near_ties": 2}))
    assert cli.main(["report", str(runs[0]), "--output", str(tmp_path / "one")]) == 0
    assert "2 of 5 answers were decided by a margin within bfloat16" in (tmp_path / "one/report.md").read_text()


def test_what_is_no_run_is_named(tmp_path, runs, capsys):
    (tmp_path / "empty").mkdir()
    for more, named in (([tmp_path / "empty"], "no report.json"), ([runs[0]], "the same run twice")):
        assert cli.main(["report", str(runs[0]), *map(str, more), "--output", str(tmp_path / "x")]) == 2
        message = capsys.readouterr().err.strip().splitlines()
        assert named in message[-1]
