"""VQAv2, TextVQA, VizWiz: normalisation and accuracy by hand and by brute force, then through the commands."""

import json
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vqa_data import OCR, write, write_textvqa, write_vizwiz, write_vqav2

from llava_s2 import cli
from llava_s2.eval.textvqa import TextVQA
from llava_s2.eval.vizwiz import VizWiz
from llava_s2.eval.vqa_accuracy import m4c_accuracy, normalize, normalize_m4c, vizwiz_accuracy, vqa_accuracy
from llava_s2.eval.vqav2 import VQAv2

WRITE = {"vqav2": write_vqav2, "textvqa": write_textvqa, "vizwiz": write_vizwiz}


@pytest.mark.parametrize(
    ("text", "vqa", "m4c"),
    [
        ("The Dog", "dog", "dog"),
        ("a an the", "", ""),
        ("None", "0", "0"),
        ("Twenty one", "twenty 1", "twenty 1"),
        ("ten-two", "10 2", "10 2"),
        ("1,000", "1000", "1000"),
        ("1,000 (approx)", "1000 approx", "1000 approx"),
        ("1,000/year", "1000year", "1000 year"),  # a comma between digits: every mark goes without a space
        ("red,blue", "red blue", "redblue"),
        ("red, blue", "red blue", "red blue"),
        ("3.5", "3.5", "3.5"),
        ("3.", "3", "3"),
        ("U.S.A.", "usa", "usa"),
        (".5 a.m.", ".5 am", ".5 am"),
        ("." * 33, ".", "."),  # the official slip: 32 periods at most
        ("[left] side", "left side", "left side"),
        ("t-shirt", "t shirt", "t shirt"),
        ("t- shirt", "t shirt", "t shirt"),
        ("dont", "don't", "don't"),
        ("Im", "im", "im"),  # the tables' capital keys never match lower-case words
        ("somebody'd", "somebodyd", "somebodyd"),
        ("ow's'at", "'ow's'at", "ow 's'at"),
        ("dog's", "dog's", "dog 's"),
        ("what?", "what", "what"),
        ("50%", "50%", "50%"),
        ("10:30", "10:30", "10:30"),
        ("$5 & up", "$5 & up", "$5 & up"),
        ("yes\n", "yes", "yes"),
    ],
)
def test_normalisation_by_the_official_rules(text, vqa, m4c):
    assert normalize(text) == vqa
    assert normalize_m4c(text) == m4c


WORDS = st.sampled_from(["yes", "no", "maybe"])


@given(WORDS, st.lists(WORDS, min_size=10, max_size=10))
def test_accuracy_is_the_mean_over_all_nine_of_ten_people(answer, people):
    subsets = list(combinations(people, 9))
    expected = sum(min(1, nine.count(answer) / 3) for nine in subsets) / len(subsets)
    told_apart = [{"answer": person, "answer_id": number} for number, person in enumerate(people)]
    assert vqa_accuracy(answer, told_apart) == pytest.approx(expected)
    assert m4c_accuracy(answer, people) == pytest.approx(expected)
    assert vizwiz_accuracy(answer, people) == pytest.approx(expected)


def test_where_the_three_codes_differ():
    def people(*answers):
        return [{"answer": answer, "answer_id": number} for number, answer in enumerate(answers)]

    assert vqa_accuracy("Yes", people(*["yes"] * 10)) == 0  # nobody disagrees: letter for letter
    assert vqa_accuracy("Yes", people(*["yes"] * 9, "no")) == 1
    assert vqa_accuracy("yes", [{"answer": "yes"}] * 10) == 0  # one person, as far as the code can tell
    assert vizwiz_accuracy("Yes.", ["yes"] * 10) == 1
    assert vizwiz_accuracy("the Bowl", ["Bowl"] * 10) == 0  # people's answers stay as they are
    assert vizwiz_accuracy("dont", ["don\u2019t"] * 10) == 1
    assert vizwiz_accuracy("wheres", ["where's"] * 10) == 1
    assert m4c_accuracy("The Bowl?", ["bowl"] * 5 + ["Bowl!"] * 5) == 1


@pytest.fixture(params=WRITE)
def task(request):
    return request.param


@pytest.fixture
def data(task, tmp_path):
    return WRITE[task](tmp_path / task)


ANSWERS = {  # task -> question id -> text and its score by hand
    "vqav2": {"42000": ("The White.", 1.0), "42001": ("Yes", 0.0), "73000": ("Two", 1.0)},
    "textvqa": {"34602": ("Nous", 0.3), "34603": ("copenhagen", 0.6)},
    "vizwiz": {"VizWiz_val_00000000.jpg": ("Unanswerable.", 1.0), "1": ("dog's bowl", 0.9)},
}


def score(data, task, predictions, capsys, *more):
    path = data.with_suffix(".jsonl")
    path.write_text("".join(json.dumps({"question_id": i, "text": t}) + "\n" for i, t in predictions))
    status = cli.main(["score", task, "--data", str(data), "--predictions", str(path), *more])
    captured = capsys.readouterr()
    return status, captured.out.splitlines(), captured.err


def test_score(task, data, capsys):
    answers = ANSWERS[task]
    status, out, _ = score(data, task, [(i, text) for i, (text, _) in answers.items()], capsys)
    assert status == 0
    scored = json.loads(out[-1])
    expected = [value for _, value in answers.values()]
    assert list(scored["scores"].values()) == pytest.approx(expected)
    overall = scored["results"]["overall"]
    assert overall["accuracy"] == pytest.approx(sum(expected) / len(expected))
    assert overall["interval"][0] <= overall["accuracy"] <= overall["interval"][1]
    assert any(line.startswith("overall") and f"{overall['accuracy']:.2%}" in line for line in out)


def test_categories(tmp_path, capsys):
    results = {}
    for task in ("vqav2", "vizwiz"):
        data = WRITE[task](tmp_path / task)
        _, out, _ = score(data, task, [(i, text) for i, (text, _) in ANSWERS[task].items()], capsys)
        results[task] = {category: row["accuracy"] for category, row in json.loads(out[-1])["results"].items()}
    assert results["vqav2"] == pytest.approx({"yes/no": 0, "number": 1, "other": 1, "overall": 2 / 3})
    assert results["vizwiz"] == pytest.approx({"answerable": 0.9, "unanswerable": 1, "overall": 0.95})


def test_ids_at_fault_keep_the_denominator(task, data, capsys):
    (first, (text, value)), *_ = ANSWERS[task].items()
    status, out, err = score(data, task, [(first, text), (first, text), ("nowhere", "x")], capsys)
    assert status == 2
    overall = json.loads(out[-1])["results"]["overall"]
    assert (overall["count"], overall["correct"]) == (len(ANSWERS[task]), pytest.approx(value))
    for fault in ("1 double question id(s): ", "1 unknown question id(s): nowhere", "missing question id(s)"):
        assert fault in err


def test_prompts(tmp_path):
    short = "Answer the question using a single word or phrase."
    vqav2 = VQAv2().load(write_vqav2(tmp_path / "a"), "generate")
    assert vqav2[2].prompt == f"How many bikes?\n{short}"
    assert vqav2[2].images == (tmp_path / "a/val2014/COCO_val2014_000000000073.jpg",)
    data = write_textvqa(tmp_path / "b")
    (plain, _), (ocr, _) = (TextVQA(variant).load(data, "generate") for variant in (None, "ocr"))
    assert plain.prompt == f"What is the brand of this camera?\n{short}"
    tokens = ", ".join(OCR["003a8ae2ef43b901"])
    assert ocr.prompt == f"What is the brand of this camera?\nReference OCR token: {tokens}\n{short}"
    (_, second) = VizWiz().load(write_vizwiz(tmp_path / "c"), "generate")
    given_up = "When the provided information is insufficient, respond with 'Unanswerable'."
    assert second.prompt == f"What is this?\n{given_up}\n{short}"


def edit(path, change):
    value = json.loads(path.read_text())
    change(value)
    write(path, value)


QUESTIONS, ANNOTATIONS = "v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"


@pytest.mark.parametrize(
    ("task", "fault", "named"),
    [
        ("vqav2", lambda d: edit(d / QUESTIONS, lambda v: v["questions"].pop()), "1 annotation(s) without a question"),
        ("vqav2", lambda d: edit(d / ANNOTATIONS, lambda v: v["annotations"].pop()), "1 question(s) without an annot"),
        ("vqav2", lambda d: edit(d / QUESTIONS, lambda v: v["questions"].append(v["questions"][0])), "1 double"),
        ("vqav2", lambda d: edit(d / QUESTIONS, lambda v: v["questions"][0].pop("question")), "record 1: 'question'"),
        ("vqav2", lambda d: (d / ANNOTATIONS).unlink(), "annotations.json: cannot be read"),
        (
            "textvqa",
            lambda d: edit(d / "TextVQA_0.5.1_val.json", lambda v: v["data"][1]["answers"].pop()),
            "9 'answers'",
        ),
        ("textvqa", lambda d: edit(d / "TextVQA_0.5.1_val.json", lambda v: v["data"][1].pop("answers")), "record 2"),
        ("textvqa", lambda d: (d / "TextVQA_0.5.1_val.json").write_text("{"), "not valid JSON"),
        (
            "textvqa",
            lambda d: edit(d / "TextVQA_0.5.1_val.json", lambda v: v["data"][0].update(set_name="train")),
            "record 1: is of the split 'train'",
        ),
        ("vizwiz", lambda d: (d / "test.json").replace(d / "val.json"), "another split's"),
        ("vizwiz", lambda d: edit(d / "val.json", lambda v: v.append(v[0])), "1 double question id(s)"),
    ],
)
def test_bad_data_is_one_line(task, fault, named, tmp_path, capsys):
    data = WRITE[task](tmp_path / "data")
    fault(data)
    assert cli.main(["score", task, "--data", str(data), "--predictions", str(tmp_path / "none")]) == 2
    message = capsys.readouterr().err.strip()
    assert named in message and len(message.splitlines()) == 1


def test_no_such_variant(tmp_path, capsys):
    data = write_vizwiz(tmp_path / "data")
    for task, variant, named in (("vizwiz", "train", "use val or test"), ("pope", "val", "it has none")):
        assert score(data, task, [], capsys, "--variant", variant)[2].count(named) == 1
