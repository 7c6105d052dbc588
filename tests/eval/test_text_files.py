"""Data and answers as other programs leave them: compressed, in UTF-16 or with a byte order mark, base64 over lines."""

import base64
import csv
import gzip
import io
import json
import textwrap

import pytest
from choice_data import image
from tiny_model import MODEL
from vstar_data import write_lettered, write_vstar

from llava_s2 import cli
from llava_s2.data.image_decoding import Embedded
from llava_s2.eval.benchmark import Sample
from llava_s2.eval.loading import load_ahead
from llava_s2.eval.mmstar import MMStar

ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-be")


def encoded(text, encoding, packed):
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    raw = (mark + text).encode(encoding)
    return gzip.compress(raw) if packed else raw


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_table_in_any_encoding_and_its_images(encoding, packed, tmp_path):
    raw = image(3)["bytes"]
    text = base64.b64encode(raw).decode()
    wrapped = "\n".join(textwrap.wrap(text, 76))
    columns = ["index", "question", "A", "B", "answer", "category", "image"]
    rows = [
        [number, "Which\u2028 é?", "red", "blue", "B", "c", cell] for number, cell in enumerate((text, wrapped, "1"))
    ]
    table = io.StringIO()
    csv.writer(table, delimiter="\t").writerows([columns, *rows])
    (tmp_path / f"MMStar.tsv{'.gz' if packed else ''}").write_bytes(encoded(table.getvalue(), encoding, packed))
    samples = MMStar().load(tmp_path, "generate")
    assert [sample.images[0].read() for sample in samples] == [raw] * 3
    assert {sample.prompt.splitlines()[-4] for sample in samples} == {" é?"}


def score(tmp_path, name, raw, capsys):
    if not (tmp_path / "vstar").exists():
        write_lettered(write_vstar(tmp_path / "vstar"))
    if raw is not None:
        (tmp_path / name).write_bytes(raw)
    capsys.readouterr()
    code = cli.main(["score", "vstar", "--data", str(tmp_path / "vstar"), "--predictions", str(tmp_path / name)])
    return code, capsys.readouterr()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("name", ["p.jsonl", "p.json", "p.csv"])
def test_answers_in_any_encoding(name, encoding, packed, tmp_path, capsys):
    answers = [{"question_id": str(number), "text": "C"} for number in range(5)]
    text = "\n".join(map(json.dumps, answers))
    if name == "p.csv":
        text = "question_id,text\n" + "\n".join(f"{number},C" for number in range(5))
    code, told = score(tmp_path, name + (".gz" if packed else ""), encoded(text, encoding, packed), capsys)
    found = json.loads(told.out.splitlines()[-1])
    assert (code, found["missing"]) == (0, [])
    assert found["results"]["overall"]["correct"] == 2  # the questions with three options


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        (gzip.compress(b"x" * 999)[:20], "damaged gzip"),
        (b"\xff\xfe\x00\xd8", "not valid UTF-16"),
        (b'{"question_id": "0", "text": "\xe9"}', "not valid JSON"),
    ],
)
def test_a_damaged_file_is_one_line(raw, named, tmp_path, capsys):
    code, told = score(tmp_path, "p.jsonl", raw, capsys)
    assert code == 2 and named in told.err and str(tmp_path / "p.jsonl") in told.err and "Traceback" not in told.err


def test_half_a_surrogate_pair_in_data_and_answers(tmp_path, loads, capsys):
    data, run = write_lettered(write_vstar(tmp_path / "vstar")), tmp_path / "run"
    questions = data / "test_questions.jsonl"
    questions.write_text(questions.read_text().replace("the cup?", "the \\ud83d cup \\ud83d\\ude00?"))
    assert cli.main(["eval", "vstar", *MODEL, "--data", str(data), "--output", str(run), "--scoring", "generate"]) == 0
    answers = run / "predictions.jsonl"
    assert "the ? cup 😀?" in answers.read_text(encoding="utf-8")
    answers.write_text(
        answers.read_text(encoding="utf-8").replace('"text": "', '"text": "\\udc00', 1), encoding="utf-8"
    )
    assert cli.main(["report", str(run), "--output", str(tmp_path / "page"), "--html"]) == 0


def test_folders_in_the_places_of_files_are_one_line(tmp_path, loads, capsys):
    (tmp_path / "p.jsonl").mkdir()
    code, told = score(tmp_path, "p.jsonl", None, capsys)
    assert code == 2 and f"{tmp_path / 'p.jsonl'}: cannot be read (Is a directory)" in told.err
    run = tmp_path / "run"
    command = ["eval", "vstar", *MODEL, "--data", str(tmp_path / "vstar"), "--output", str(run), "--limit", "1"]
    assert cli.main(command) == 0
    for name in ("predictions.jsonl", "report.json", "run.json", "report.md"):
        (run / name).rename(run / "aside")
        (run / name).mkdir()
        capsys.readouterr()
        assert cli.main(command) == 2, name
        message = capsys.readouterr().err.splitlines()[-1]
        assert message.startswith("llava-s2: error: ") and str(run / name) in message, name
        (run / name).rmdir()
        (run / "aside").rename(run / name)
    assert cli.main(command) == 0


def test_an_image_inside_a_file_is_read_once():
    reads = []
    embedded = Embedded("x", lambda: reads.append(1) or image(3)["bytes"])
    sample = Sample("1", "c", (embedded,), "What?", (), None)
    ((_, (shown,)),) = load_ahead([[sample]], lambda picture, file: (picture.size, file.read()))
    assert len(reads) == 1 and shown.images[0][1] == image(3)["bytes"] and shown.marks[0][0] == len(image(3)["bytes"])
