"""The paper's table with a model's column beside it, from folders that runs leave."""

import json

import pytest

from llava_s2.eval.table11 import main


def report(folder, task, percents, model="mine", **more):
    results = {
        name: {"count": 10, "correct": value / 10, "accuracy": value / 100, "interval": [0.1, 0.9], "unparseable": 0}
        for name, value in percents.items()
    }
    content = {"task": task, "model": model, "scoring": "generate", "protocol": "p", "results": results}
    content |= {"question_ids": ["1"] * 10, "questions_in_data": 10} | more
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(content))


@pytest.fixture
def table(capsys):
    def run(*arguments):
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err, json.loads(captured.out.splitlines()[-1]) if status == 0 else None

    return run


def test_your_column_stands_beside_the_papers(tmp_path, table):
    both = {"direct_attributes": 40, "relative_position": 50, "overall": 44}
    report(tmp_path / "vstar/letter", "vstar", both)
    report(
        tmp_path / "vstar/likelihood",
        "vstar",
        both | {"direct_attributes": 52},
        scoring="likelihood",
        variant="sentences",
    )
    report(tmp_path / "vstar/blind", "vstar", both, scoring="likelihood", protocol="V*, without the image")
    report(tmp_path / "textvqa/plain", "textvqa", {"overall": 55.5}, variant="plain")
    report(tmp_path / "textvqa/ocr", "textvqa", {"overall": 60.9}, variant="ocr")
    report(tmp_path / "vqav2", "vqav2", {"overall": 77.7}, variant="val", questions_in_data=1000)
    report(tmp_path / "seed", "seedbench", {"image": 66.6, "overall": 60.0}, variant="all")
    report(tmp_path / "math", "mathvista", {"overall": 20.2})
    report(tmp_path / "mmvet", "mmvet", {})
    status, out, _, values = table(tmp_path, "vizwiz=50.3")
    assert status == 0
    found = {value["row"]: (value["percent"], value["note"]) for value in values}
    assert found["V* attribute"] == (pytest.approx(52), "")
    assert found["TextVQA"][0] == pytest.approx(60.9) and found["SEED-Bench"] == (pytest.approx(66.6), "")
    assert "on val" in found["VQAv2"][1] and "10 of 1000 questions" in found["VQAv2"][1]
    assert found["VizWiz"] == (50.3, "as its server said") and "GPT-4" in found["MathVista"][1]
    assert found["MM-Vet"] == (None, "") == found["MMMU"]
    rows = {line.split("  ")[0]: line.split() for line in out.splitlines()}
    assert rows["V* attribute"][2:] == ["51.3", "40.9", "43.5", "51.3", "41.7", "50.4", "52.0", "10.0", "to", "90.0"]
    assert rows["MM-Vet"][1:] == ["67.6", "64.3", "30.5", "32.4", "35.4", "36.4", "-"]
    assert rows["VQAv2"][7] == "77.7*"
    assert out.split()[:7] == ["GPT-4V", "Gemini", "Pro", "LLaVA-1.5-7B", "7B", "+", "S2"]


def test_several_models_have_a_column_each(tmp_path, table):
    report(tmp_path / "a", "mmmu", {"overall": 30}, model="one", variant="validation")
    report(tmp_path / "b", "mmmu", {"overall": 35}, model="two", variant="validation")
    status, out, _, values = table(tmp_path / "a", tmp_path / "b")
    assert all("VLMEvalKit" in value["note"] for value in values if value["row"] == "MMMU")
    assert status == 0 and "yours (1): one" in out and "yours (2): two" in out
    found = {value["model"]: value["percent"] for value in values if value["row"] == "MMMU"}
    assert found == pytest.approx({"one": 30, "two": 35})


def test_bad_input_is_one_line(tmp_path, table):
    (tmp_path / "empty").mkdir()
    report(tmp_path / "broken", "mmmu", {})
    (tmp_path / "broken/report.json").write_text("{}")
    cases = [("none", "no such folder"), ("empty", "no report.json"), ("broken", "has no model"), ("cola=3", "TASK=")]
    for argument, named in cases:
        status, _, error, _ = table(argument if "=" in argument else tmp_path / argument)
        assert status == 2 and named in error and len(error.strip().splitlines()) == 1
