"""The metrics of the further benchmarks against values worked out by hand, and the layouts that they come in."""

import base64
import csv
import json

import pytest
from choice_data import image, write_table
from judge_server import JudgeServer

from llava_s2 import cli
from llava_s2.eval.chartqa import relaxed
from llava_s2.eval.docvqa import anls
from llava_s2.eval.mme import says as mme_says
from llava_s2.eval.pope import says as pope_says

LETTER = "Answer with the option's letter from the given choices directly."
PNG = base64.b64encode(image(1)["bytes"]).decode()


def write_tsv(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)


def load(task, data, scoring="generate", variant=None):
    from importlib import import_module

    module, name = cli_tasks()[task]
    return getattr(import_module(module), name)(variant).load(data, scoring)


def cli_tasks():
    from llava_s2.eval.eval_cli import TASKS

    return TASKS


def score(task, data, answers, capsys, *more):
    path = data / "answers.jsonl"
    path.write_text("".join(json.dumps({"question_id": i, "text": t}) + "\n" for i, t in answers.items()))
    assert cli.main(["score", task, "--data", str(data), "--predictions", str(path), *more]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize(
    "mark", ["<think>No, 20.</think>\n", "No? 20?</think>", "<Thinking>No</Thinking> ", "◁think▷20◁/think▷"]
)
def test_reasoning_is_no_part_of_another_programs_answers(mark, tmp_path, capsys):
    write_tsv(
        tmp_path / "chart/ChartQA_TEST.tsv", [{"index": 0, "image": PNG, "question": "?", "answer": "12", "split": "h"}]
    )
    found = score("chartqa", tmp_path / "chart", {"0": f"{mark}12"}, capsys)
    assert found["results"]["overall"]["correct"] == 1
    assert "without the reasoning" in found["protocol"] and found["replies"] == {"reasoning": 1}
    assert "without" not in score("chartqa", tmp_path / "chart", {"0": "12"}, capsys)["protocol"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Yes", "yes"),
        ("No", "no"),
        ("no, there is", "no"),
        ("There is not one. Yes", "no"),
        ("None", "yes"),
        ("", "yes"),
    ],
)
def test_popes_yes_and_no(text, said):
    assert pope_says(text) == said


def test_popes_f1_is_the_mean_of_its_sets(tmp_path, capsys):
    (tmp_path / "coco").mkdir()
    for kind in ("adversarial", "popular", "random"):
        labels = [("yes", "a"), ("no", "b"), ("yes", "c"), ("no", "d")]
        lines = [
            {"question_id": n, "image": f"{kind}.jpg", "text": f"Is there a {thing} in the image?", "label": label}
            for n, (label, thing) in enumerate(labels, start=1)
        ]
        (tmp_path / f"coco/coco_pope_{kind}.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    answers = {f"{kind}/{n}": "Yes" for kind in ("adversarial", "popular", "random") for n in range(1, 5)}
    answers |= {"random/2": "No.", "random/4": "no", "popular/1": "No"}
    found = score("pope", tmp_path, answers, capsys)
    # adversarial: precision 1/2, recall 1; popular: 1/3 and 1/2; random: all right.
    f1 = {"adversarial": 2 / 3, "popular": 0.4, "random": 1.0}
    assert {kind: found["metrics"][f"F1 {kind}"] for kind in f1} == pytest.approx(f1)
    assert found["metrics"]["F1, mean of the sets"] == pytest.approx(sum(f1.values()) / 3)
    assert found["results"]["overall"]["correct"] == 7


def test_scienceqa_counts_images_apart(tmp_path, capsys):
    records = [
        {"id": "4", "conversations": [{"value": "Which?\nA. x\nB. y"}, {"value": "B"}]},
        {"id": "5", "image": "5/image.png", "conversations": [{"value": "<image>\nWhat?\nA. x\nB. y"}, {"value": "A"}]},
        {"id": "6", "image": "6/image.png", "conversations": [{"value": "Who?\n<image>\nA. x\nB. y"}, {"value": "A"}]},
    ]
    (tmp_path / "llava_test_CQM-A.json").write_text(json.dumps(records))
    found = score("scienceqa", tmp_path, {"4": "B. y", "5": "The answer is A.", "6": "(A)"}, capsys)
    assert found["scores"] == {"4": True, "5": True, "6": False}
    assert {name: row["correct"] for name, row in found["results"].items()} == {"image": 1, "text": 1, "overall": 2}
    likelihood = load("scienceqa", tmp_path, "likelihood")[0]
    assert (likelihood.prompt, likelihood.options) == ("Which?", ("x", "y"))


@pytest.mark.parametrize(
    ("text", "said"), [("Yes", "yes"), ("no.", "no"), ("  Nope", "no"), ("I say yes", None), ("Y", None)]
)
def test_mmes_yes_and_no(text, said):
    assert mme_says(text) == said


def test_gqa_is_exact_but_for_case_and_full_stop(tmp_path, capsys):
    questions = {"7": {"question": "Is it?", "imageId": "n1", "answer": "left", "types": {"structural": "choose"}}}
    (tmp_path / "testdev_balanced_questions.json").write_text(json.dumps(questions))
    for text, right in (("Left.", True), ("left", True), ("the left", False)):
        assert score("gqa", tmp_path, {"7": text}, capsys)["scores"] == {"7": right}


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("105", "100", True),
        ("105.1", "100", False),
        ("95", "100", True),
        ("14%", "0.14", True),
        ("14", "14%", False),
        ("Blue", "blue", True),
        ("0", "0", True),
        ("0.0", "0", False),
        ("1,000", "1000", False),
    ],
)
def test_relaxed_accuracy(answer, reference, right):
    assert relaxed(answer, reference) is right


@pytest.mark.parametrize(
    ("answer", "references", "similarity"),
    [
        ("Paris", ["paris"], 1.0),
        ("pari", ["paris"], 0.8),
        ("  the  cat ", ["the cat"], 1.0),
        ("abcd", ["abxy"], 0.5),
        ("abcd", ["axyz"], 0.0),
        ("x", ["paris", "y x"], 0.0),
        ("", ["a"], 0.0),
    ],
)
def test_anls(answer, references, similarity):
    assert anls(answer, references) == pytest.approx(similarity)


CHOICES = {"A": "red", "B": "blue", "C": "", "D": "", "image": PNG}


@pytest.mark.parametrize(
    ("task", "file", "more"),
    [
        ("mmstar", "MMStar.tsv", {"category": "math", "l2_category": "geometry"}),
        ("hrbench", "hr_bench_4k.tsv", {"category": "single", "cycle_category": 0}),
        ("ai2d", "AI2D_TEST.tsv", {"category": "atoms"}),
        ("realworldqa", "RealWorldQA.tsv", {}),
        ("blink", "BLINK.tsv", {"category": "Counting"}),
        ("mmvp", "MMVP.tsv", {}),
    ],
)
def test_vlmevalkits_tables(task, file, more, tmp_path, capsys):
    rows = [{"index": n, "question": f"Which {n}?", **CHOICES, "answer": "AB"[n % 2], **more} for n in range(2)]
    rows[1]["image"] = "0"  # the other row's
    write_tsv(tmp_path / file, rows)
    samples = load(task, tmp_path)
    assert samples[0].prompt == f"Which 0?\nA. red\nB. blue\n{LETTER}"
    assert samples[1].images[0].read() == image(1)["bytes"]
    assert load(task, tmp_path, "likelihood")[0].prompt == "Which 0?"
    found = score(task, tmp_path, {"0": "A", "1": "(A)"}, capsys)
    assert found["results"]["overall"]["correct"] == (0 if task == "mmvp" else 1)  # a pair is right together
    if task == "mmvp":
        assert found["metrics"] == {"accuracy of single questions": 0.5}


@pytest.mark.parametrize(
    ("task", "file", "row"),
    [
        ("mmstar", "val-00000-of-00001.parquet", {"index": 0, "question": "Which?\nOptions: A: red, B: blue",
                                                   "category": "c"}),
        ("ai2d", "test-00000-of-00001.parquet", {"question": "Which?", "options": ["red", "blue"], "answer": "1"}),
        ("realworldqa", "test-00000-of-00001.parquet", {"question": "Which?\nA. red\nB. blue\nPlease answer directly "
                                                            "with only the letter of the correct option."}),
        ("mmvp", "train-00000-of-00001.parquet", {"Index": 1, "Question": "Which?", "Options": "(a) red (b) blue",
                                                  "Correct Answer": "(b)"}),
    ],
)  # fmt: skip
def test_parquet_tables(task, file, row, tmp_path):
    row = {"answer": "B", **row, "image": image(1)}
    write_table(tmp_path / file, [row], ["image"])
    (sample,) = load(task, tmp_path)
    assert (sample.prompt, sample.options) == (f"Which?\nA. red\nB. blue\n{LETTER}", ("red", "blue"))
    assert sample.reference == "B" and sample.images[0].read() == image(1)["bytes"]


def test_blinks_images_come_in_order(tmp_path):
    row = {"idx": "val_Jigsaw_1", "question": "Which?", "choices": ["x", "y"], "answer": "(B)", "sub_task": "Jigsaw"}
    row |= {"image_1": image(1), "image_2": image(2), "image_3": None, "image_4": None}
    (tmp_path / "Jigsaw").mkdir()
    write_table(tmp_path / "Jigsaw/val-00000-of-00001.parquet", [row], [f"image_{n}" for n in range(1, 5)])
    (tmp_path / "Counting").mkdir()  # a second task has shards of its own
    other = row | {"idx": "val_Counting_1", "sub_task": "Counting"}
    write_table(tmp_path / "Counting/val-00000-of-00001.parquet", [other], [f"image_{n}" for n in range(1, 5)])
    _, sample = load("blink", tmp_path)
    assert [shown.read() for shown in sample.images] == [image(1)["bytes"], image(2)["bytes"]]
    assert (sample.category, sample.reference) == ("Jigsaw", "B")


def test_mmerealworld_asks_and_reads_by_its_own_rules(tmp_path, capsys):
    options = [f"({letter}) {text}" for letter, text in zip("ABCDE", ("1", "2", "3", "4", "not there"), strict=True)]
    row = {"index": 3, "question": "How many?", "image": PNG, "multi-choice options": str(options), "answer": "B"}
    write_tsv(
        tmp_path / "mme_realworld_lite.tsv", [row | {"category": "Perception/Remote Sensing", "l2-category": "count"}]
    )
    (sample,) = load("mmerealworld", tmp_path)
    assert sample.prompt.startswith("How many? The choices are listed below:\n(A) 1\n(B) 2\n")
    assert sample.prompt.endswith(
        "(E) not there\nSelect the best answer to the above multiple-choice question based on the image. "
        "Respond with only the letter (A, B, C, D, or E) of the correct option.\nThe best answer is:"
    )
    for text, right in (("The best answer is B", True), ("(B)", True), ("b", True), ("A or B", False), ("", False)):
        assert score("mmerealworld", tmp_path, {"3": text}, capsys)["scores"] == {"3": right}


def test_ocrbench_counts_what_holds_a_reference(tmp_path, capsys):
    rows = [
        {"index": 0, "question": "What?", "image": PNG, "category": "Regular Text Recognition", "answer": "['CENTRE']"},
        {"index": 1, "question": "Write.", "image": PNG, "answer": "['x ^ 2']",
         "category": "Handwritten Mathematical Expression Recognition"},
        {"index": 2, "question": "Write.", "image": PNG, "answer": "['X']",
         "category": "Handwritten Mathematical Expression Recognition"},
    ]  # fmt: skip
    write_tsv(tmp_path / "OCRBench.tsv", rows)
    found = score("ocrbench", tmp_path, {"0": "it says centre.", "1": "x^2 = 4", "2": "x"}, capsys)
    assert found["scores"] == {"0": True, "1": True, "2": False} and found["metrics"] == {"score": 2.0}


def test_docvqas_answers_are_any_of_several(tmp_path, capsys):
    rows = [{"index": 9, "question": "Who?", "image": PNG, "answer": '["Ann Lee", "A. Lee"]'}]
    write_tsv(tmp_path / "DocVQA_VAL.tsv", rows)
    assert score("docvqa", tmp_path, {"9": "ann lee"}, capsys)["scores"] == {"9": 1.0}
    write_tsv(tmp_path / "InfoVQA_VAL.tsv", rows)
    assert score("infovqa", tmp_path, {"9": "a lee"}, capsys)["scores"] == {"9": pytest.approx(5 / 6)}


def test_chartqa_says_who_asked(tmp_path, capsys):
    rows = [{"index": 0, "question": "Q", "image": PNG, "answer": "10", "split": "test_human"}]
    rows.append(rows[0] | {"index": 1, "split": "test_augmented"})
    write_tsv(tmp_path / "ChartQA_TEST.tsv", rows)
    found = score("chartqa", tmp_path, {"0": "10.4", "1": "9"}, capsys)
    assert {name: row["correct"] for name, row in found["results"].items()} == {
        "human": 1,
        "augmented": 0,
        "overall": 1,
    }


def test_mmmu_as_vlmevalkit_asks_it(tmp_path, capsys):
    images = "[" + ", ".join(f"'{PNG}'" for _ in range(2)) + "]"
    columns = {"C": "", "D": "", "image": images, "split": "validation", "category": "Art"}
    rows = [
        {
            "index": 1,
            "id": "validation_Art_1",
            "question": "Is <image 2> like <image 1>?",
            "A": "yes",
            "B": "no",
            "answer": "B",
        },
        {"index": 2, "id": "validation_Art_2", "question": "How many in <image 1>?", "A": "", "B": "", "answer": "7"},
        {"index": 4, "id": "validation_Art_4", "question": "<image 1> 是?", "A": "左", "B": "右", "answer": "A"},
        {"index": 5, "id": "validation_Art_5", "question": "<image 1>?", "A": "", "B": "", "answer": "['1/6', '0.17']"},
        {"index": 3, "id": "dev_Art_3", "question": "<image 1>?", "A": "a", "B": "b", "answer": "A", "split": "dev"},
    ]
    write_tsv(tmp_path / "MMMU_DEV_VAL.tsv", [{**columns, **row} for row in rows])
    first, second, chinese, several = load("mmmu", tmp_path, variant="vlmevalkit")
    assert first.prompt == f"Is <image> like <image>?\nA. yes\nB. no\n{LETTER}" and first.interleaved
    assert len(first.images) == 2 and first.images[0].name.endswith("2")
    assert second.prompt == "How many in <image>?\nAnswer the question directly." and len(second.images) == 1
    assert chinese.prompt == "<image> 是?\nA. 左\nB. 右\n请直接回答选项字母。"
    assert several.reference["answer"] == ["['1/6', '0.17']"]  # which an answer of words hardly holds
    answers = {
        "validation_Art_1": "B",
        "validation_Art_2": "It is 7",
        "validation_Art_4": "",
        "validation_Art_5": "1/6",
    }
    found = score("mmmu", tmp_path, answers, capsys, "--variant", "vlmevalkit")
    assert found["results"]["overall"]["correct"] == 2 and "VLMEvalKit" in found["protocol"]


def test_mmmu_pro_puts_images_in_their_places(tmp_path, capsys):
    row = {"id": "test_Art_1", "question": "Who is <image 1>?", "options": str(["Ann", "<image 2>"]), "answer": "B"}
    row |= {"subject": "Art", "image_1": image(1), "image_2": image(2)}
    (tmp_path / "standard (10 options)").mkdir()
    write_table(tmp_path / "standard (10 options)/test-00000-of-00001.parquet", [row], ["image_1", "image_2"])
    (sample,) = load("mmmupro", tmp_path)
    assert sample.prompt.startswith("Who is <image>?\nA. Ann\nB. <image>\n\nAnswer with the option letter")
    assert sample.interleaved and [shown.read() for shown in sample.images] == [image(1)["bytes"], image(2)["bytes"]]
    assert score("mmmupro", tmp_path, {"test_Art_1": "B"}, capsys)["scores"] == {"test_Art_1": True}


def test_mmbench_of_lmms_lab_and_version_11(tmp_path, capsys):
    row = {
        "index": 1,
        "question": "Which?",
        "hint": "nan",
        "A": "None",
        "B": "x",
        "C": "nan",
        "D": "nan",
        "answer": "A",
    }
    row |= {"category": "c", "L2-category": "k", "image": image(1)}
    (tmp_path / "en").mkdir()
    write_table(tmp_path / "en/dev-00000-of-00001.parquet", [row], ["image"])
    (sample,) = load("mmbench", tmp_path)
    assert sample.prompt == f"Which?\nA. None\nB. x\n{LETTER}" and sample.category == "k"
    rows = [{"index": 7, "g_index": 3, "question": "Q", **CHOICES, "answer": "B", "category": "c"}]
    write_tsv(tmp_path / "MMBench_DEV_EN_V11.tsv", rows)
    assert load("mmbench", tmp_path, variant="dev-en-v11")[0].group == "q3"
    assert score("mmbench", tmp_path, {"7": "b"}, capsys, "--variant", "dev-en-v11", "--rule", "llava-s2")[
        "scores"
    ] == {"7": True}


def test_llava_bench_is_judged_beside_gpt_4(tmp_path, capsys):
    lines = {
        "questions": [{"question_id": 0, "image": "1.jpg", "text": "What?", "category": "conv"},
                      {"question_id": 1, "image": "1.jpg", "text": "Why?", "category": "complex"}],
        "context": [{"image": "1.jpg", "caption": "A cat."}],
        "answers_gpt4": [{"question_id": 0, "text": "A cat!"}, {"question_id": 1, "text": "Because."}],
    }  # fmt: skip
    for name, records in lines.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    with JudgeServer(
        lambda body: "8 6\nwell" if "What?" in body["messages"][1]["content"] else "10, 3"
    ).running() as server:
        flags = ["--judge-url", server.url, "--judge-model", "gpt-4-0314"]
        found = score("llavabench", tmp_path, {"0": "a dog", "1": "no idea"}, capsys, *flags)
        body = next(body for body, _, _ in server.requests if "What?" in body["messages"][1]["content"])
    assert found["metrics"]["relative score, all"] == pytest.approx(100 * 9 / 18)
    assert found["metrics"]["relative score, conv"] == pytest.approx(75)
    assert body["messages"][0]["role"] == "system" and body["temperature"] == 0.2 and body["max_tokens"] == 1024
    assert body["messages"][1]["content"].startswith(
        "[Context]\nA cat.\n\n[Question]\nWhat?\n\n[Assistant 1]\nA cat!\n\n[End of Assistant 1]\n\n"
        "[Assistant 2]\na dog"
    )
