"""``llava-s2 score`` and ``llava-s2 compare`` on files made by hand."""

import json

import pytest
from vstar_data import ATTRIBUTES, POSITIONS, write_lettered, write_vstar

from llava_s2 import cli

IDS = [f"direct_attributes/{n}" for n in ATTRIBUTES] + [f"relative_position/{n}" for n in POSITIONS]


@pytest.fixture
def data(tmp_path):
    return write_vstar(tmp_path / "vstar")


def score(tmp_path, data, capsys, lines):
    path = tmp_path / "predictions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    status = cli.main(["score", "vstar", "--data", str(data), "--predictions", str(path)])
    captured = capsys.readouterr()
    return status, captured.out.splitlines(), captured.err


def test_option_texts_and_letters(tmp_path, data, capsys):
    write_lettered(data)  # the right letter is C, C, B, B, B
    sentences = [options for _, options in (*ATTRIBUTES.values(), *POSITIONS.values())]
    texts = [sentences[0][0], "C", "(A)", "B.", sentences[4][1]]
    ids = [IDS[0], "1", 2, "sa_4", "relative_position/sa_5.jpg"]  # every way to name a question
    lines = [{"question_id": i, "text": t} for i, t in zip(ids, texts, strict=True)]
    status, out, _ = score(tmp_path, data, capsys, lines)
    assert status == 0
    results = json.loads(out[-1])["results"]
    assert {c: (r["correct"], r["count"], r["accuracy"]) for c, r in results.items()} == {
        "direct_attributes": (2, 3, pytest.approx(2 / 3)),
        "relative_position": (1, 2, 0.5),
        "overall": (3, 5, 0.6),
    }


def test_letters_without_the_official_file_follow_the_annotation(tmp_path, data, capsys):
    lines = [{"question_id": i, "text": t} for i, t in zip(IDS, "AABAB", strict=True)]
    status, out, _ = score(tmp_path, data, capsys, lines)
    assert status == 0 and json.loads(out[-1])["results"]["overall"]["correct"] == 3
    lines[0]["options"] = ATTRIBUTES["sa_1"][1][::-1]  # this program showed them the other way round
    assert json.loads(score(tmp_path, data, capsys, lines)[1][-1])["results"]["overall"]["correct"] == 2


@pytest.mark.parametrize("options", [[["red"], {"a": 1}], "red", [1, 2]])
def test_options_that_are_no_list_of_texts_are_named(tmp_path, data, capsys, options):
    lines = [{"question_id": IDS[0], "text": "A"}, {"question_id": IDS[1], "text": "A", "options": options}]
    status, _, err = score(tmp_path, data, capsys, lines)
    assert status == 2
    assert "predictions.jsonl, line 2: 'options' must be a list of texts" in err and len(err.splitlines()) == 1


def test_ids_at_fault_are_named_and_counted_and_the_denominator_stays(tmp_path, data, capsys):
    right = [options[0] for _, options in (*ATTRIBUTES.values(), *POSITIONS.values())]
    lines = [{"question_id": i, "text": t} for i, t in zip(IDS, right, strict=True)]
    lines = [*lines[:4], {"question_id": "nowhere", "text": "A"}, {"question_id": "sa_1", "text": "B"}]
    status, out, err = score(tmp_path, data, capsys, lines)
    scored = json.loads(out[-1])
    assert status == 2
    assert (scored["missing"], scored["unknown"], scored["double"]) == ([IDS[4]], ["nowhere"], ["sa_1"])
    for named in (
        f"1 missing question id(s): {IDS[4]}",
        "1 unknown question id(s): nowhere",
        "1 double question id(s): sa_1",
    ):
        assert named in err
    assert (scored["results"]["overall"]["correct"], scored["results"]["overall"]["count"]) == (4, 5)


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"question_id": "a"}',
        '{"question_id": "a", "text": 1}',
        '{"text": "A"}',
        '{"question_id": true, "text": "A"}',
        '{"question_id": "sa_2", "answer": "B", "response": "C"}',  # whose answer is the reference
        '{"question_id": "sa_2", "answer": "B", "question": "Which?"}',
    ],
)
def test_lines_that_are_no_predictions(tmp_path, data, capsys, line):
    path = tmp_path / "predictions.jsonl"
    path.write_text(json.dumps({"question_id": "sa_1", "text": "A"}) + "\n" + line + "\n")
    assert cli.main(["score", "vstar", "--data", str(data), "--predictions", str(path)]) == 2
    assert f"{path}, line 2: " in capsys.readouterr().err


def test_the_files_that_other_programs_write(tmp_path, data, capsys):
    from openpyxl import Workbook

    write_lettered(data)
    texts = ["C", "C", "B", None, "B"]  # an empty cell is an empty answer
    book = Workbook()
    rows = [[number, "Which?", "A", text] for number, text in enumerate(texts)]
    for row in [["index", "question", "answer", "prediction"], *rows]:
        book.active.append(row)
    book.save(tmp_path / "kit.xlsx")
    server = [{"question_id": number, "answer": text or ""} for number, text in enumerate(texts)]
    (tmp_path / "server.json").write_text(json.dumps(server))
    for name in ("kit.xlsx", "server.json"):
        assert cli.main(["score", "vstar", "--data", str(data), "--predictions", str(tmp_path / name)]) == 0
        overall = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]["overall"]
        assert (overall["correct"], overall["unparseable"]) == (4, 1)
    (tmp_path / "kit.xlsx").write_bytes(b"PK, but no more")
    assert cli.main(["score", "vstar", "--data", str(data), "--predictions", str(tmp_path / "kit.xlsx")]) == 2
    assert "kit.xlsx: cannot be read as an Excel file" in capsys.readouterr().err


def test_answers_of_several_models_are_told(tmp_path, data, capsys):
    write_lettered(data)
    lines = [{"question_id": str(n), "text": "A", "model_id": "old" if n == 4 else "new"} for n in range(5)]
    (tmp_path / "merged.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert cli.main(["score", "vstar", "--data", str(data), "--predictions", str(tmp_path / "merged.jsonl")]) == 0
    out = capsys.readouterr().out
    assert "the answers are of 2 models: new, old" in out and json.loads(out.splitlines()[-1])["models"] == [
        "new",
        "old",
    ]


def test_no_predictions_file(tmp_path, data, capsys):
    assert cli.main(["score", "vstar", "--data", str(data), "--predictions", str(tmp_path / "none")]) == 2
    assert str(tmp_path / "none") in capsys.readouterr().err


def make_run(folder, right, task="vstar", questions="q", finished=True):
    """A run folder of 20 questions, ten a category; ``right`` are the numbers of those answered correctly."""
    folder.mkdir()
    categories = ["direct_attributes"] * 10 + ["relative_position"] * 10
    lines = [
        {"question_id": str(i), "text": "x", "category": category, "correct": i in right}
        for i, category in enumerate(categories)
    ]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = {
        "task": task,
        "questions": questions,
        "model": folder.name,
        "protocol": "p",
        "results": {"direct_attributes": {}, "relative_position": {}, "overall": {}},
        "question_ids": [str(i) for i in range(20)],
    }
    if finished:
        (folder / "report.json").write_text(json.dumps(report))
    return str(folder)


def test_compare(tmp_path, capsys):
    a = make_run(tmp_path / "a", {0, 1, 2, 10})
    b = make_run(tmp_path / "b", {0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11})
    assert cli.main(["compare", a, b]) == 0
    out = capsys.readouterr().out.splitlines()
    found = json.loads(out[-1])
    assert found["differing"] == {"only_a": ["1"], "only_b": ["3", "4", "5", "6", "7", "8", "9", "11"]}
    overall, attribute = found["results"]["overall"], found["results"]["direct_attributes"]
    assert (overall["count"], overall["correct_a"], overall["correct_b"]) == (20, 4, 11)
    assert overall["difference"] == pytest.approx(7 / 20)
    assert overall["p"] == pytest.approx(2 * (1 + 9) / 2**9)  # 1 against 8
    assert (attribute["only_a"], attribute["only_b"]) == (1, 7)
    assert attribute["p"] == pytest.approx(2 * (1 + 8) / 2**8)
    assert found["results"]["relative_position"]["p"] == 1
    assert any(line.startswith("right in B only (8): 3, 4, 5") for line in out)


def test_compare_refuses_what_cannot_be_paired(tmp_path, capsys):
    a = make_run(tmp_path / "a", {0})
    others = {
        "different tasks": make_run(tmp_path / "task", {0}, task="textvqa"),
        "different questions": make_run(tmp_path / "data", {0}, questions="other"),
        "finish the run": make_run(tmp_path / "unfinished", {0}, finished=False),
        "no such folder": str(tmp_path / "none"),
    }
    others["broken/report.json: lacks model, protocol, question_ids, questions, results, task"] = make_run(
        tmp_path / "broken", {0}
    )
    (tmp_path / "broken/report.json").write_text("[]")
    limited = tmp_path / "limited"
    others["not of the same questions: 5 in one only, such as 15"] = make_run(limited, {0})
    report = json.loads((limited / "report.json").read_text())
    (limited / "report.json").write_text(json.dumps(report | {"question_ids": report["question_ids"][:15]}))
    for message, other in others.items():
        assert cli.main(["compare", a, other]) == 2
        assert message in capsys.readouterr().err


def test_compare_of_grades_with_shades(tmp_path, capsys):
    runs = [make_run(tmp_path / name, set(), task="vqav2") for name in "ab"]
    for run, grades in zip(runs, ([0.3] * 20, [0.6] * 15 + [0.0] * 5), strict=True):
        path = tmp_path / run / "predictions.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        graded = (json.dumps(line | {"correct": grade}) + "\n" for line, grade in zip(lines, grades, strict=True))
        path.write_text("".join(graded))
    assert cli.main(["compare", *runs]) == 0
    out = capsys.readouterr().out.splitlines()
    found = json.loads(out[-1])
    overall, attribute = found["results"]["overall"], found["results"]["direct_attributes"]
    assert found["test"] == "paired bootstrap" and any("paired bootstrap" in line for line in out)
    assert overall["difference"] == pytest.approx((15 * 0.3 - 5 * 0.3) / 20)
    assert overall["interval"][0] < overall["difference"] < overall["interval"][1]
    assert (overall["only_a"], overall["only_b"]) == (5, 15)
    assert attribute["difference"] == pytest.approx(0.3) and attribute["p"] < 0.01
    assert found["differing"]["only_a"] == ["15", "16", "17", "18", "19"]
