"""A whole run of each task on the tiny reference model, through the command line."""

import json
from pathlib import Path

import pytest
from choice_data import write_mathvista, write_mmbench, write_mmmu, write_seedbench
from judge_server import JudgeServer
from mmvet_data import MMVET, write_mmvet
from tiny_model import MODEL
from vqa_data import VQAV2, picture, write_textvqa, write_vizwiz, write_vqav2

from llava_s2 import cli
from llava_s2.eval.eval_cli import TASKS
from llava_s2.eval.vqa_accuracy import normalize_m4c

WRITE = {
    "vqav2": write_vqav2,
    "textvqa": write_textvqa,
    "vizwiz": write_vizwiz,
    "mmmu": write_mmmu,
    "mathvista": write_mathvista,
    "mmbench": write_mmbench,
    "seedbench": write_seedbench,
    "mmvet": write_mmvet,
}


@pytest.fixture(autouse=True)
def one_model(loads):
    """Every run uses the model that is loaded already."""


def evaluate(task, data, output, *more):
    return cli.main(["eval", task, *MODEL, "--data", str(data), "--output", str(output), "--batch-size", "2", *more])


@pytest.mark.parametrize(
    ("task", "more"),
    [
        ("vqav2", []),
        ("textvqa", []),
        ("vizwiz", []),
        ("mmmu", ["--limit", "4"]),
        ("mathvista", []),
        ("seedbench", []),
        ("seedbench", ["--scoring", "likelihood"]),
    ],
)
def test_a_run_is_scored_as_its_predictions_file(task, more, tmp_path, capsys):
    data, output = WRITE[task](tmp_path / "data"), tmp_path / "run"
    assert evaluate(task, data, output, *more) == 0
    report = json.loads((output / "report.json").read_text())
    predictions = output / "predictions.jsonl"
    records = [json.loads(line) for line in predictions.read_text().splitlines()]
    capsys.readouterr()
    status = cli.main(["score", task, "--data", str(data), "--predictions", str(predictions)])
    scored = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {record["question_id"]: record["correct"] for record in records}.items() <= scored["scores"].items()
    assert scored.get("variant") == report.get("variant")
    if "--limit" not in more:
        assert status == 0 and scored["results"] == report["results"]
    if task in ("vqav2", "vizwiz"):
        for record in records:
            assert record["text"] == normalize_m4c(record.get("generated", record["text"]))
    assert cli.main(["compare", str(output), str(output)]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["results"]["overall"]["difference"] == 0


@pytest.mark.parametrize(("task", "split"), [("vqav2", "test-dev"), ("vizwiz", "test")])
def test_a_test_split_writes_the_servers_file(task, split, tmp_path, capsys):
    data, output = WRITE[task](tmp_path / "data"), tmp_path / "run"
    assert evaluate(task, data, output, "--variant", split) == 0
    path = output / f"{task}_{split}.json"
    assert str(path) in capsys.readouterr().out
    submission = json.loads(path.read_text())
    if task == "vqav2":
        assert [entry["question_id"] for entry in submission] == list(VQAV2)
    else:
        assert [entry["image"] for entry in submission] == ["VizWiz_test_00000000.jpg", "VizWiz_test_00000001.jpg"]
    assert all(isinstance(entry["answer"], str) for entry in submission)
    assert json.loads((output / "report.json").read_text())["results"] == {}
    predictions = str(output / "predictions.jsonl")
    assert cli.main(["score", task, "--data", str(data), "--predictions", predictions, "--variant", split]) == 2
    assert "no answers to score with" in capsys.readouterr().err


def test_mmvet_without_and_with_a_judge(tmp_path, capsys, loads):
    data, output, other = write_mmvet(tmp_path / "data"), tmp_path / "run", tmp_path / "other"
    assert evaluate("mmvet", data, output) == 0
    out = capsys.readouterr().out
    assert "no score: MM-Vet's answers are graded by a language model" in out and "mm-vet.json" in out
    records = [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]
    texts = {record["question_id"]: record["text"] for record in records}
    assert json.loads((output / "mm-vet.json").read_text()) == texts and texts.keys() == MMVET.keys()
    assert json.loads((output / "report.json").read_text())["results"] == {}
    assert "graded by a language model" in (output / "report.md").read_text()
    with JudgeServer(lambda body: "0.5").running() as server:
        judge = ["--judge-url", server.url, "--judge-model", "gpt-4-0613", "--judge-runs", "2"]
        assert evaluate("mmvet", data, output, *judge) == 0
        assert len(loads) == 1  # the answers were there
        out = capsys.readouterr().out
        assert "judge: gpt-4-0613 at http" in out and "12 requests, 0 answers from the cache" in out
        report = json.loads((output / "report.json").read_text())
        assert report["results"]["overall"]["accuracy"] == 0.5 and report["judge"]["totals"] == [0.5, 0.5]
        assert "judged by gpt-4-0613 at http" in (output / "report.md").read_text()
        assert report["results"]["ocr"]["count"] == 5 and report["results"]["rec alone"]["count"] == 1
        assert evaluate("mmvet", data, output) == 0 and len(server.requests) == 12  # the verdicts stay
        again = json.loads((output / "report.json").read_text())
        assert again["results"] == report["results"] and again["judge"]["name"] == report["judge"]["name"]
        assert evaluate("mmvet", data, other, "--limit", "3", *judge) == 0
        assert len(server.requests) == 18
    capsys.readouterr()
    assert evaluate("mmvet", data, other) == 2  # three more answers, which nobody has judged
    assert "3 of 6 predictions have been judged, by gpt-4-0613" in capsys.readouterr().err
    assert cli.main(["compare", str(output), str(output)]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["results"]["overall"]["correct_a"] == 3


def test_mathvista_writes_what_the_official_code_extracts_from(tmp_path, capsys):
    data, output = write_mathvista(tmp_path / "data"), tmp_path / "run"
    assert evaluate("mathvista", data, output) == 0
    assert "no judge: answers are extracted by rules alone" in capsys.readouterr().out
    problems = json.loads((output / "mathvista.json").read_text())
    records = [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]
    assert {pid: problem["response"] for pid, problem in problems.items()} == {
        record["question_id"]: record["text"] for record in records
    }
    wanted = {"pid", "query", "question_type", "answer_type", "choices", "precision", "answer", "metadata"}
    assert all(wanted <= problem.keys() for problem in problems.values())


def test_a_question_of_several_forms_is_asked_whole_and_counts_once(tmp_path, capsys):
    data, output = write_mmbench(tmp_path / "data"), tmp_path / "run"
    assert evaluate("mmbench", data, output, "--limit", "1") == 0
    report = json.loads((output / "report.json").read_text())
    assert report["results"]["overall"]["count"] == 1 and len(report["question_ids"]) in (2, 3)
    assert evaluate("mmbench", data, output) == 0
    report = json.loads((output / "report.json").read_text())
    assert report["results"]["overall"]["count"] == 2 and len(report["question_ids"]) == 5
    assert (output / "mmbench_dev-en.xlsx").exists()
    path, right = output / "predictions.jsonl", {"0": "B", "1000000": "A", "1": "C", "1000001": "B", "2000001": "A"}
    other = tmp_path / "other"
    other.mkdir()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for folder, wrong in ((output, "1000001"), (other, "")):
        graded = [line | {"text": right[i], "correct": i != wrong} for line in lines if (i := line["question_id"])]
        (folder / path.name).write_text("".join(json.dumps(line) + "\n" for line in graded))
    (other / "report.json").write_text(json.dumps(report))
    capsys.readouterr()
    assert cli.main(["compare", str(output), str(other)]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    overall = found["results"]["overall"]
    assert (overall["count"], overall["correct_a"], overall["correct_b"], overall["only_b"]) == (2, 1, 2, 1)


def test_the_guide_adds_a_benchmark(tmp_path, monkeypatch, capsys):
    guide = (Path(__file__).parents[2] / "docs/add_a_benchmark.md").read_text()
    code = guide.split("```python\n")[1].split("```")[0]
    assert len(code.splitlines()) < 45
    (tmp_path / "guide_vsr.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(TASKS, "vsr", ("guide_vsr", "VSR"))
    data, output = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    records = [
        {"image": f"{number}.jpg", "caption": "The dog is under the car.", "relation": relation, "label": label}
        for number, (relation, label) in enumerate((("under", 1), ("on", 0), ("under", 1)))
    ]
    (data / "test.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for number in range(3):
        picture(data / "images" / f"{number}.jpg", number)
    assert evaluate("vsr", data, output) == 0
    results = json.loads((output / "report.json").read_text())["results"]
    assert [results[category]["count"] for category in ("under", "on", "overall")] == [2, 1, 3]
    predictions = tmp_path / "predictions.jsonl"
    texts = ("Yes.", "no", "Perhaps")
    predictions.write_text("".join(json.dumps({"question_id": i, "text": t}) + "\n" for i, t in enumerate(texts)))
    capsys.readouterr()
    assert cli.main(["score", "vsr", "--data", str(data), "--predictions", str(predictions)]) == 0
    scored = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert scored["scores"] == {"0": True, "1": True, "2": False}


def test_missing_images_are_counted_before_any_weight(tmp_path, capsys, loads):
    data = write_vqav2(tmp_path / "data")
    (data / "val2014/COCO_val2014_000000000042.jpg").unlink()
    assert evaluate("vqav2", data, tmp_path / "run") == 2
    message = capsys.readouterr().err.strip()
    assert "1 of 2 images" in message and len(message.splitlines()) == 1
    assert not loads
