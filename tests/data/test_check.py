"""``llava-s2 data check`` on files in which every fault is known."""

import json
from pathlib import Path

import pytest
from faulty_data import ASK, CLEAN, FOUND, RECORDS, turns, write_faulty, write_images
from PIL import Image

from llava_s2.cli import main

LENGTHS = ["--model", Path(__file__).parents[1] / "golden" / "llava_tiny" / "vicuna-tiny", "--max-length", 700]


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path)
    return tmp_path


def check(capsys, path, *flags, images=None):
    images = path.parent if images is None else images
    start = ["data", "check", path, "--images", images, "--model", "none"]
    status = main([str(part) for part in [*start, *flags]])
    out = capsys.readouterr().out
    return status, json.loads(out.splitlines()[-1]) if out else None, out


@pytest.mark.parametrize(("name", "workers"), [("data.jsonl", 0), ("data.json", 2)])
def test_every_fault_is_told_with_its_records(folder, capsys, name, workers):
    path = write_faulty(folder / name)
    clean = folder / f"clean-{name}"
    status, last, out = check(capsys, path, "--output", folder / "out", "--fix", clean, "--workers", workers, *LENGTHS)
    assert status == 1
    report = json.loads((folder / "out" / "report.json").read_text())
    found = {kind: [entry["index"] for entry in told["records"]] for kind, told in report["faults"].items()}
    assert found == FOUND
    assert last["faults"] == {kind: len(indices) for kind, indices in FOUND.items()}
    assert (last["records"], last["good"]) == (len(RECORDS), len(CLEAN))
    for told in report["faults"].values():
        assert all(entry["line"] == entry["index"] + 1 for entry in told["records"])
    (long,) = report["faults"]["too_long"]["records"]
    assert long["message"].startswith(f"{700 + long['excess']} tokens")
    assert sum(report["lengths"]["histogram"]["counts"]) == 9  # not of broken, roles and the two without target
    assert "cut.jpg: truncated or damaged" in out
    with Image.open(folder / "out" / "lengths.png") as plot:
        assert plot.format == "PNG" and plot.width > 500

    text = clean.read_text()
    kept = json.loads(text) if name == "data.json" else [json.loads(line) for line in text.splitlines()]
    assert kept == [RECORDS[index] for index in CLEAN]
    assert check(capsys, clean, images=folder)[:2] == (0, {"records": 2, "good": 2, "faults": {}})
    assert not list(folder.glob(".*"))


def test_a_kind_that_is_ignored_is_listed_and_does_not_count(folder, capsys):
    path = folder / "data.json"
    path.write_text(json.dumps([RECORDS[0], RECORDS[10]]))
    assert check(capsys, path)[0] == 1
    status, last, out = check(capsys, path, "--ignore", "duplicate_id", "--fix", folder / "clean.json")
    assert (status, last["good"]) == (0, 2)
    assert "the id of record 0" in out
    assert json.loads((folder / "clean.json").read_text()) == [RECORDS[0], RECORDS[10]]


@pytest.mark.parametrize(
    ("text", "kept", "line", "message"),
    [
        ('[A,\n{"id": "x", "image": "C:\\Users\\a.jpg"},\nB]', "AB", 2, "backslash"),
        ("[A\nB]", "AB", 2, "comma is missing after record 0"),
        ("[A,\nB,]", "AB", 2, "comma stands after"),
        ("[A,\nB", "AB", 2, "without its closing bracket"),
        ('A\n{"conversations": [}\nB', "AB", 2, "not JSON"),
        ("A\nimage,question\nB", "AB", 2, "a data file is"),
        ('[A,\n{"a": [{"from": 1},\nB,\nA]', "AB", 2, "not JSON"),
    ],
)
def test_it_goes_on_behind_broken_json(folder, capsys, text, kept, line, message):
    records = {"A": {"id": 1, "conversations": turns("q", "a")}, "B": {"id": 2, "conversations": turns("q", "b")}}
    for name, record in records.items():
        text = text.replace(name, json.dumps(record), 1) if text.count(name) == 1 else text
    text = text.replace("[A,", "[" + json.dumps(records["A"]) + ",").replace(",\nA]", "]")
    path = folder / "data.json"
    path.write_text(text)
    status, last, out = check(capsys, path, "--fix", folder / "clean")
    assert status == 1
    assert set(last["faults"]) == {"malformed"}
    assert message in out and f"line {line}: " in out
    cleaned = (folder / "clean").read_text()
    again = json.loads(cleaned) if text[0] == "[" else [json.loads(row) for row in cleaned.splitlines()]
    assert again == [records[name] for name in kept]


def test_text_in_another_encoding_is_one_records_fault(folder, capsys):
    path = folder / "data.jsonl"
    good = json.dumps({"conversations": turns("q", "a")}).encode()
    path.write_bytes(b"\xef\xbb\xbf" + good + b"\n" + good.replace(b'"a"', b'"caf\xe9"') + b"\n" + good)
    status, last, out = check(capsys, path)
    assert (status, last["faults"]) == (1, {"malformed": 1})
    assert "record 1, line 2: not JSON: not UTF-8 text" in out


def test_slips_that_explain_a_missing_image(folder, capsys, monkeypatch):
    (folder / "sub").mkdir()
    (folder / "ok.jpg").rename(folder / "sub" / "ok.jpg")
    names = ["sub\\ok.jpg", "sub/ok.JPG", "C:\\pictures\\ok.jpg", "sub/ok.jpg"]
    path = folder / "data.json"
    path.write_text(json.dumps([{"image": name, "conversations": turns(ASK, "a")} for name in names]))
    _, last, out = check(capsys, path)
    assert last["faults"] == {"missing_image": 2}
    assert "record 1, line 1: " in out and "ok.JPG: no such image file; ok.jpg is there" in out
    assert "record 2, line 1: " in out and "a Windows machine" in out
    monkeypatch.chdir(folder)
    path.write_text(json.dumps([{"image": "sub/ok.jpg", "conversations": turns(ASK, "a")}]))
    assert "sub/ok.jpg is there, so names hold the folder already" in check(capsys, path, images="sub")[2]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["none.json"], "none.json: no such data file"),
        (["data.json", "--images", "nowhere"], "nowhere: no such image folder"),
        (["data.json", "--template", "v9"], "--template v9: not known"),
        (["data.json", "--fix", "data.json"], "is the file that is checked"),
        (["data.json", "--model", "/no/such/model"], "/no/such/model"),
    ],
)
def test_what_cannot_be_checked(folder, capsys, monkeypatch, flags, message):
    write_faulty(folder / "data.json")
    monkeypatch.chdir(folder)
    assert main(["data", "check", *flags]) == 2
    assert message in capsys.readouterr().err
