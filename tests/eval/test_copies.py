"""Copies of the benchmarks in lmms-lab's Parquet and VLMEvalKit's TSV, read as the releases are."""

import csv
from importlib import import_module

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from choice_data import image
from test_new_tasks import PNG

from llava_s2.errors import InputError
from llava_s2.eval.eval_cli import TASKS

SHORT = "\nAnswer the question using a single word or phrase."
PEOPLE = [{"answer": "net", "answer_confidence": "yes", "answer_id": n} for n in range(10)]
SEED = {"question": "How many?", **{f"choice_{letter}": letter for letter in "abcd"}, "answer": "C"}
MMVET = {"question": "What is x?", "answer": "-1<AND>-5"}
VISTA = {"question": "Hint: …\nWhich?", "question_type": "free_form", "answer_type": "float", "answer": "1.20",
         "choices": "", "answer_option": "", "task": "math word problem", "skills": "['algebra']"}  # fmt: skip
COPIES = [
    ("vqav2", "data/validation-00000-of-00001.parquet",
     {"question_id": 7, "image_id": 1, "question": "What?", "answer_type": "other", "answers": PEOPLE},
     "What?" + SHORT, PEOPLE),
    ("vqav2", "data/testdev-00000-of-00001.parquet",
     {"question_id": 7, "image_id": 1, "question": "What?", "answer_type": None, "answers": None},
     "What?" + SHORT, None),
    ("textvqa", "data/validation-00000-of-00001.parquet",
     {"question_id": 7, "image_id": "ab", "question": "what is it?", "answers": ["x"] * 10, "ocr_tokens": ["NO", "ON"]},
     "What is it?\nReference OCR token: NO, ON" + SHORT, ["x"] * 10),
    ("textvqa", "TextVQA_VAL.tsv", {"index": 7, "question": "what is it?", "answer": str(["x"] * 10)},
     "What is it?" + SHORT, ["x"] * 10),
    ("vizwiz", "data/val-00000-of-00001.parquet",
     {"question_id": "VizWiz_val_00000000", "question": "what IS it", "answers": ["x"] * 10, "category": "other"},
     "What is it\nWhen the provided information is insufficient, respond with 'Unanswerable'." + SHORT, ["x"] * 10),
    ("vizwiz", "VizWiz.tsv", {"index": 0, "question": "what IS it", "answers": str(["x"] * 10)},
     "What is it\nWhen the provided information is insufficient, respond with 'Unanswerable'." + SHORT, ["x"] * 10),
    ("seedbench", "data/test-00000-of-00001.parquet",
     {**SEED, "question_id": "1", "question_type_id": 10, "data_type": "video", "data_id": "v"},
     "How many?\nA. a\nB. b\nC. c\nD. d\nAnswer with the option's letter from the given choices directly.", "C"),
    ("mmvet", "data/test-00000-of-00001.parquet", {**MMVET, "question_id": "v1_0", "capability": "ocr,math"},
     "What is x?", MMVET),
    ("mmvet", "MMVet.tsv", {**MMVET, "index": 0, "category": "ocr,math"}, "What is x?", MMVET),
    ("llavabench", "data/train-00000-of-00001.parquet",
     {"question_id": "0", "question": "What?", "caption": "A cat.", "gpt_answer": "A cat!", "category": "conv"},
     "What?", {"context": "A cat.", "question": "What?", "answer": "A cat!"}),
    ("llavabench", "LLaVABench.tsv",
     {"index": 0, "question": "What?", "caption": "A cat.", "gpt4_ans": "A cat!", "category": "conv"},
     "What?", {"context": "A cat.", "question": "What?", "answer": "A cat!"}),
    ("mathvista", "MathVista_MINI.tsv", {"index": 3, **VISTA}, "Hint: …\nWhich?", ("float", 2, "1.20")),
]  # fmt: skip


def write(path, row):
    """One row with its image, in a list of three where the data is of a video."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tsv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, [*row, "image"], delimiter="\t")
            writer.writeheader()
            writer.writerow(row | {"image": PNG})
        return
    frames = [image(n) for n in (3, 1, 2)]
    pq.write_table(pa.Table.from_pylist([row | {"image": frames if row.get("data_type") else image(1)}]), path)


def load(task, data, variant=None, scoring="generate"):
    module, name = TASKS[task]
    return getattr(import_module(module), name)(variant).load(data, scoring)


@pytest.mark.parametrize(("task", "file", "row", "prompt", "reference"), COPIES)
def test_a_copy_is_asked_and_graded_as_the_release(task, file, row, prompt, reference, tmp_path):
    write(tmp_path / file, row)
    (sample,) = load(task, tmp_path, "ocr" if "ocr_tokens" in row else None)
    known = sample.reference
    if task == "mathvista":
        known = known["answer_type"], known["precision"], known["answer"]
    assert (sample.prompt, known) == (prompt, reference)
    assert [shown.read() for shown in sample.images] == [image(1)["bytes"]]  # of a video the middle frame


def test_the_releases_of_chartqa_and_ai2d(tmp_path):
    (tmp_path / "chartqa/test").mkdir(parents=True)
    for kind, label in (("human", "14"), ("augmented", "Yes")):
        text = f'[{{"imgname": "{kind}.png", "query": "How many?", "label": "{label}"}}]'
        (tmp_path / f"chartqa/test/test_{kind}.json").write_text(text)
    samples = load("chartqa", tmp_path / "chartqa")
    assert [(s.category, s.reference, s.images[0].name) for s in samples] == [
        ("human", ["14"], "human.png"), ("augmented", ["Yes"], "augmented.png")]  # fmt: skip
    (tmp_path / "ai2d/questions").mkdir(parents=True)
    for number, about_labels in ((5, "false"), (6, "true"), (7, "false")):
        text = (
            '{"questions": {"Which?": {"questionId": "q", "answerTexts": ["x", "y"], "correctAnswer": 1, "abcLabel": '
        )
        (tmp_path / f"ai2d/questions/{number}.png.json").write_text(f"{text}{about_labels}}}}}}}")
    (tmp_path / "ai2d/ai2d_test_ids.csv").write_text("6\n5\n")
    samples = load("ai2d", tmp_path / "ai2d")
    assert [(s.reference, s.images[0]) for s in samples] == [
        ("B", tmp_path / "ai2d/abc_images/6.png"), ("B", tmp_path / "ai2d/images/5.png")]  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        ("0\tWhich?\tx\ty\tA\t", "row 1: no image"),
        ("0\tWhich?\tx\ty\tA\t12", "row 1: no image"),  # the image of a row that is not there
        (f"0\tWhich?\tx\ty\tA\t{PNG}\tmore", "7 cells under 6 columns"),
    ],
)
def test_a_question_is_never_asked_without_its_image(lines, named, tmp_path):
    (tmp_path / "RealWorldQA.tsv").write_text(f"index\tquestion\tA\tB\tanswer\timage\n{lines}\n")
    with pytest.raises(InputError, match=named):
        load("realworldqa", tmp_path)


def test_parquet_whose_images_are_bytes_without_a_name(tmp_path):
    row = {"index": 0, "question": "Which?\nOptions: A: red, B: blue", "answer": "A", "category": "c"}
    pq.write_table(pa.Table.from_pylist([row | {"image": {"bytes": image(1)["bytes"]}}]), tmp_path / "mmstar.parquet")
    (sample,) = load("mmstar", tmp_path)
    assert sample.images[0].read() == image(1)["bytes"]
    pq.write_table(pa.Table.from_pylist([row | {"image": {"id": 7}}]), tmp_path / "mmstar.parquet")
    with pytest.raises(InputError, match="no image"):
        load("mmstar", tmp_path)
