"""Prompts against LLaVA-1.5's own question files, string for string (samples of its evaluation folder)."""

import json
from pathlib import Path

import pytest

from llava_s2.eval.gqa import GQA
from llava_s2.eval.mme import MME
from llava_s2.eval.mmvet import MMVet
from llava_s2.eval.pope import POPE
from llava_s2.eval.scienceqa import ScienceQA
from llava_s2.eval.textvqa import TextVQA
from llava_s2.eval.vizwiz import VizWiz

FILES = json.loads(Path(__file__).with_name("question_samples.json").read_text(encoding="utf-8"))
LETTER = "\nAnswer with the option's letter from the given choices directly."


def first_line(record):
    return record["text"].split("\n")[0]


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_lines(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def textvqa(data):
    records = [
        {"question_id": n, "image_id": r["question_id"], "question": first_line(r).lower(), "answers": ["a"] * 10}
        for n, r in enumerate(FILES["textvqa"])
    ]
    tokens = [
        (r["question_id"], r["text"].split("\n")[1].removeprefix("Reference OCR token: ")) for r in FILES["textvqa"]
    ]
    write(data / "TextVQA_0.5.1_val.json", {"data": records})
    rosetta = [{"image_id": image, "ocr_tokens": text.split(", ") if text else []} for image, text in tokens]
    write(data / "TextVQA_Rosetta_OCR_v0.2_val.json", {"data": rosetta})
    return TextVQA("ocr"), [record["text"] for record in FILES["textvqa"]]


def textvqa_of_llavas_file(data):
    benchmark, prompts = textvqa(data)
    (data / "TextVQA_Rosetta_OCR_v0.2_val.json").unlink()
    write_lines(data / "llava_textvqa_val_v051_ocr.jsonl", FILES["textvqa"])
    return benchmark, prompts


def vizwiz(data):
    write(data / "test.json", [{"image": r["image"], "question": first_line(r).lower()} for r in FILES["vizwiz"]])
    return VizWiz("test"), [record["text"] for record in FILES["vizwiz"]]


def gqa(data):
    questions = {
        r["question_id"]: {"question": first_line(r), "imageId": Path(r["image"]).stem, "answer": "yes"}
        for r in FILES["gqa"]
    }
    write(data / "data/testdev_balanced_questions.json", questions)
    return GQA(), [record["text"] for record in FILES["gqa"]]


def pope(data):
    for kind in ("adversarial", "popular", "random"):
        labels = [label for label in FILES["pope_labels"] if label["set"] == kind]
        write_lines(data / f"coco/coco_pope_{kind}.json", labels)
    write_lines(data / "llava_pope_test.jsonl", FILES["pope"])
    return POPE(), [record["text"] for record in FILES["pope"]]


def scienceqa(data):
    write(data / "llava_test_CQM-A.json", FILES["scienceqa"])
    asked = [record["conversations"][0]["value"].replace("<image>", "").strip() for record in FILES["scienceqa"]]
    return ScienceQA(), [question + LETTER for question in asked]


def mmvet(data):
    fields = {"answer": "a", "capability": ["ocr"], "imagename": "v1_0.png"}
    write(data / "mm-vet.json", {f"v1_{n}": {**fields, "question": r["text"]} for n, r in enumerate(FILES["mmvet"])})
    return MMVet(), [record["text"] for record in FILES["mmvet"]]


@pytest.mark.parametrize("make", [textvqa, textvqa_of_llavas_file, vizwiz, gqa, pope, scienceqa, mmvet])
def test_prompts_are_llavas(make, tmp_path):
    benchmark, prompts = make(tmp_path)
    assert [sample.prompt for sample in benchmark.load(tmp_path, "generate")] == prompts


@pytest.mark.parametrize("folder", ["{}", "{}/images"])
def test_mmes_prompts_are_llavas_and_its_answers_are_told_apart_by_them(folder, tmp_path, capsys):
    from llava_s2.cli import main

    release = tmp_path / "MME_Benchmark_release_version"
    for name in dict.fromkeys(record["image"] for record in FILES["mme"]):
        task, image = name.split("/")[0], name.split("/")[-1]
        file = release / folder.format(task) / image
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
        lines = [first_line(record) for record in FILES["mme"] if record["image"] == name]
        text = "".join(f"{line} Please answer yes or no.\t{('Yes', 'No')[n]}\n" for n, line in enumerate(lines))
        place = file.parent.parent / "questions_answers_YN" if folder.endswith("images") else file.parent
        place.mkdir(exist_ok=True)
        (place / f"{Path(image).stem}.txt").write_text(text)
    samples = MME().load(tmp_path, "generate")
    assert sorted(sample.prompt for sample in samples) == sorted(record["text"] for record in FILES["mme"])
    assert all(sample.images[0].is_file() for sample in samples)
    # In the other order than the release: the second question of each image first.
    answers = [
        {**record, "prompt": record["text"], "text": ("Yes", "No")[n % 2]} for n, record in enumerate(FILES["mme"])
    ]
    write_lines(tmp_path / "answers.jsonl", answers[::-1])
    assert main(["score", "mme", "--data", str(tmp_path), "--predictions", str(tmp_path / "answers.jsonl")]) == 0
    metrics = json.loads(capsys.readouterr().out.splitlines()[-1])["metrics"]
    tasks = {record["category"] for record in FILES["mme"]}
    assert metrics["perception"] + metrics["cognition"] == 200 * len(tasks)
    assert all(metrics[task] == 200 for task in tasks)


def test_a_pope_question_without_a_label_is_an_error(tmp_path):
    from llava_s2.errors import InputError

    benchmark, _ = pope(tmp_path)
    write_lines(tmp_path / "coco/coco_pope_random.json", [FILES["pope_labels"][0]])
    with pytest.raises(InputError, match="no label in coco/"):
        benchmark.load(tmp_path, "generate")
