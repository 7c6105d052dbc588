"""Reading V* and grading answers."""

import json
import shutil

import pytest
from vstar_data import ATTRIBUTES, POSITIONS, SENTENCE, write_lettered, write_table, write_vstar

from llava_s2.errors import InputError
from llava_s2.eval.letters import read_option as parse_answer
from llava_s2.eval.vstar import VStar


@pytest.fixture
def folder(tmp_path):
    return write_vstar(tmp_path / "vstar")


def test_likelihood_takes_the_question_and_the_sentences(folder):
    samples = VStar().load(write_lettered(folder), "likelihood")
    assert [s.id for s in samples] == [f"direct_attributes/{n}" for n in ATTRIBUTES] + [
        f"relative_position/{n}" for n in POSITIONS
    ]
    for sample in samples:
        question, options = {**ATTRIBUTES, **POSITIONS}[sample.images[0].stem]
        assert (sample.prompt, list(sample.options)) == (question, options)
        assert sample.images[0] == folder / f"{sample.id}.jpg"
        assert [VStar().grade(sample, {"text": option}).correct for option in options] == [True] + [False] * (
            len(options) - 1
        )


def test_letters_are_those_of_the_official_file(folder):
    write_lettered(folder)
    lines = [json.loads(line) for line in (folder / "test_questions.jsonl").read_text().splitlines()]
    for sample, line in zip(VStar().load(folder, "generate"), lines, strict=True):
        assert sample.prompt == line["text"]
        graded = {letter: VStar().grade(sample, {"text": letter}) for letter in "ABC"[: len(sample.options)]}
        assert [letter for letter, grade in graded.items() if grade.correct] == [line["label"]]


@pytest.mark.parametrize("scoring", ["generate", "likelihood", None])
@pytest.mark.parametrize("place", ["default/test/0000.parquet", "test-00000-of-00001.parquet"])
def test_the_hubs_table_stands_for_the_official_file(folder, scoring, place):
    write_lettered(folder)
    expected = VStar().load(folder, scoring)
    write_table(folder, folder / place, images=False)
    (folder / "test_questions.jsonl").unlink()
    assert VStar().load(folder, scoring) == expected


@pytest.mark.parametrize("scoring", ["generate", "likelihood"])
def test_a_table_with_images_is_enough(folder, tmp_path, scoring):
    write_lettered(folder)
    for annotation in folder.glob("*/*.json"):
        annotation.unlink()
    expected = VStar().load(folder, scoring)
    write_table(folder, tmp_path / "table/data/test-00000-of-00001.parquet", images=True)
    samples = VStar().load(tmp_path / "table", scoring)
    assert [s.id for s in samples] == [f"{s.category}/{n}" for n, s in enumerate(expected)]
    for sample, other in zip(samples, expected, strict=True):
        assert (sample.prompt, sample.options, sample.reference) == (other.prompt, other.options, other.reference)
        assert sample.images[0].read() == other.images[0].read_bytes() and other.aliases[0] in sample.aliases


def test_a_table_that_names_images_needs_them(folder, tmp_path):
    write_lettered(folder)
    write_table(folder, tmp_path / "table/0000.parquet", images=False)
    with pytest.raises(InputError, match=r"row 1: names the image 'direct_attributes/sa_1.jpg', but the folders"):
        VStar().load(tmp_path / "table", "generate")
    write_table(folder, folder / "0000.parquet", images=False)
    (folder / "direct_attributes/sa_1.jpg").unlink()
    (folder / "direct_attributes/sa_1.json").unlink()
    (folder / "test_questions.jsonl").unlink()
    with pytest.raises(InputError, match=r"row 1: no image direct_attributes/sa_1.jpg"):
        VStar().load(folder, "generate")


def test_a_missing_letter_sentence_is_added(folder):
    write_lettered(folder)
    path = folder / "test_questions.jsonl"
    path.write_text(path.read_text().replace("\\n" + SENTENCE, ""))
    assert all(sample.prompt.endswith(f"\n{SENTENCE}") for sample in VStar().load(folder, "generate"))


def test_letters_without_the_official_file_are_fixed_and_not_always_a(tmp_path):
    folder = tmp_path / "vstar"
    write_vstar(folder)
    for number in range(30):
        for suffix in ("jpg", "json"):
            shutil.copy(folder / f"direct_attributes/sa_2.{suffix}", folder / f"direct_attributes/n{number}.{suffix}")
    samples, again = VStar().load(folder, "generate"), VStar().load(folder, "generate")
    assert samples == again
    right = []
    for sample in samples:
        question, options = json.loads(sample.images[0].with_suffix(".json").read_text())["question"], sample.options
        lines = sample.prompt.splitlines()
        assert lines[0] == question and lines[-1] == SENTENCE
        assert lines[1:-1] == [f"({'ABC'[i]}) {option}" for i, option in enumerate(options)]
        own = {"options": list(options)}
        right.append("".join(a for a in "ABC"[: len(options)] if VStar().grade(sample, {"text": a, **own}).correct))
    assert set(right) == {"A", "B", "C"}


def test_the_official_file_alone_is_enough(folder):
    write_lettered(folder)
    for path in folder.glob("*/*.json"):
        path.unlink()
    samples = VStar().load(folder, "likelihood")
    assert [s.prompt for s in samples] == [question for question, _ in (*ATTRIBUTES.values(), *POSITIONS.values())]
    for sample, (_, options) in zip(samples, (*ATTRIBUTES.values(), *POSITIONS.values()), strict=True):
        assert sorted(sample.options) == sorted(options)
        assert VStar().grade(sample, {"text": options[0]}).correct
        assert not VStar().grade(sample, {"text": options[1]}).correct


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("B", "cotton"),
        (" b.", "cotton"),
        ("(C)", "dark leather"),
        ("(C) dark leather", "dark leather"),
        ("B. cotton", "cotton"),
        ("B: it is cotton", "cotton"),
        ("B cotton", "cotton"),
        ("B) cotton", "cotton"),
        ("The answer is B", "cotton"),
        ("The correct option is (A).", "rubber"),
        ("dark leather", "dark leather"),
        ("Dark  leather.", "dark leather"),
        ("A glove.", None),
        ("(A) or (B)", None),
        ("A, B", None),
        ("A and B.", None),
        ("B or C", None),
        ("D", None),
        ("", None),
        ("I do not know", None),
        ("(D)", None),
        ("The glove is rubber.", "The glove is rubber."),
    ],
)
def test_reading_answers(text, chosen):
    assert parse_answer(text, ["rubber", "cotton", "dark leather"], ["The glove is rubber."]) == chosen


def _edit(path, **fields):
    record = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in record.items() if value is not None}))


def test_likelihood_does_not_read_the_lettered_file(folder):
    expected = VStar().load(folder, "likelihood")
    (folder / "test_questions.jsonl").write_text("no JSON")
    assert VStar().load(folder, "likelihood") == expected
    for scoring in ("generate", None):
        with pytest.raises(InputError, match=r"test_questions\.jsonl, line 1: not valid JSON"):
            VStar().load(folder, scoring)


@pytest.mark.parametrize("scoring", ["generate", None])
def test_an_image_without_its_line_is_named(folder, scoring):
    path = write_lettered(folder) / "test_questions.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(InputError, match=r"sa_5\.jpg: no line in .*test_questions\.jsonl \(so for 1 of 5 images\)"):
        VStar().load(folder, scoring)


@pytest.mark.parametrize("suffix", ["webp", "bmp", "TIFF", "jp2"])
def test_pictures_of_any_format(folder, suffix):
    old = folder / "direct_attributes/sa_1.jpg"
    old.rename(new := old.with_suffix(f".{suffix}"))
    assert [s.images for s in VStar().load(folder, "likelihood")].count((new,)) == 1
    new.with_suffix(".json").unlink()
    with pytest.raises(InputError, match=rf"sa_1\.{suffix}: no NAME\.json beside it"):
        VStar().load(folder, "likelihood")


def _folder_in_place_of(path):
    path.unlink()
    path.mkdir()


BROKEN = {
    "no folder": (lambda f: shutil.rmtree(f), "no such folder"),
    "empty folder": (
        lambda f: [shutil.rmtree(f / c) for c in ("direct_attributes", "relative_position")],
        "no question",
    ),
    "no annotation": (lambda f: (f / "direct_attributes/sa_1.json").unlink(), "sa_1"),
    "two images": (lambda f: shutil.copy(f / "direct_attributes/sa_1.jpg", f / "direct_attributes/sa_1.png"), "sa_1"),
    "one option": (lambda f: _edit(f / "direct_attributes/sa_1.json", options=["red"]), "sa_1.json: 1 'option"),
    "no option": (lambda f: _edit(f / "direct_attributes/sa_1.json", options=[]), "sa_1.json: 0 'option"),
    "same options": (lambda f: _edit(f / "direct_attributes/sa_1.json", options=["red", "red"]), "sa_1.json"),
    "options no list": (lambda f: _edit(f / "direct_attributes/sa_1.json", options="red"), "sa_1.json: 'options'"),
    "option no text": (lambda f: _edit(f / "direct_attributes/sa_1.json", options=["red", 2]), "sa_1.json: 'options'"),
    "no question": (lambda f: _edit(f / "direct_attributes/sa_1.json", question=None), "sa_1.json: 'question'"),
    "question no text": (lambda f: _edit(f / "direct_attributes/sa_1.json", question=3), "sa_1.json: 'question'"),
    "image mark": (lambda f: _edit(f / "direct_attributes/sa_1.json", question="<image>?"), "sa_1.json: 'question'"),
    "no JSON": (lambda f: (f / "direct_attributes/sa_1.json").write_text("{"), "sa_1.json: not valid JSON"),
    "no object": (lambda f: (f / "direct_attributes/sa_1.json").write_text("[]"), "sa_1.json: must be"),
    "a folder": (lambda f: _folder_in_place_of(f / "direct_attributes/sa_1.json"), "sa_1.json: cannot be read"),
    "not UTF-8": (lambda f: (f / "direct_attributes/sa_1.json").write_bytes(b'{"question": "\xff"}'), "sa_1.json"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_folder_is_named_in_one_line(folder, fault):
    breaks, named = BROKEN[fault]
    breaks(folder)
    with pytest.raises(InputError, match=named) as caught:
        VStar().load(folder, "likelihood")
    assert "\n" not in str(caught.value)


BROKEN_LINES = {
    "label": ({"label": "D"}, "line 2: 'label'"),
    "label no text": ({"label": 1}, "line 2: 'label'"),
    "unknown image": ({"image": "direct_attributes/none.jpg"}, "line 2: no image"),
    "same image": ({"image": "direct_attributes/sa_1.jpg"}, "line 2: second question"),
    "same id": ({"question_id": 0}, r"jsonl: 1 double question id\(s\), such as 0"),
    "no id": ({"question_id": None}, "line 2: 'question_id'"),
    "no options": ({"text": "What?"}, "line 2: the options"),
    "one option": ({"text": "What?\n(A) this"}, "line 2: the options"),
    "letters skipped": ({"text": "What?\n(A) this\n(C) that"}, "line 2: the options"),
}


@pytest.mark.parametrize("fault", BROKEN_LINES)
def test_a_broken_line_is_named(folder, fault):
    fields, named = BROKEN_LINES[fault]
    path = write_lettered(folder) / "test_questions.jsonl"
    lines = path.read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | fields)
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match=named):
        VStar().load(folder, "generate")
