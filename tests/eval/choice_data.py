"""Small MMMU, MathVista, SEED-Bench and MMBench folders in their official layouts."""

import base64
import csv
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from vqa_data import picture, write

from llava_s2.eval.mmmu import DISCIPLINES

SUBJECTS = [subject for subjects in DISCIPLINES.values() for subject in subjects]
MMMU_OPEN = "validation_Math_1"
MMMU_TWO_IMAGES = "validation_Art_1"

MATHVISTA = {  # pid -> query, choices, answer type, precision, answer, task, skills
    "1": ("Hint: …\nQuestion: When?", None, "float", 1.0, "1.2", "math word problem", ["arithmetic reasoning"]),
    "2": (
        "Hint: …\nQuestion: Which?\nChoices:\n(A) 45°\n(B) 60°",
        ["45°", "60°"],
        "text",
        None,
        "60°",
        "geometry problem solving",
        ["geometry reasoning", "algebraic reasoning"],
    ),
    "3": ("Hint: …\nQuestion: How many?", None, "integer", None, "4", "math word problem", ["arithmetic reasoning"]),
}

SEED = {  # question id -> dimension, kind, data id, question, answer
    "101669_1": (1, "image", "1454426_2591111986", "How many towels are in the image?", "A"),
    "431196": (5, "image", "1454426_2591111986", "Where is the dog?", "C"),
    "v10_2": (10, "video", "140963.webm", "What is done?", "B"),
}
DIMENSIONS = {"Scene Understanding": 1, "Instances Counting": 5, "Action Recognition": 10}


def write_mmmu(folder: Path, split: str = "validation") -> Path:
    """One multiple-choice question a subject, the right letter B; Math has one in free form, Art one of two images."""
    for number, subject in enumerate(SUBJECTS):
        kind, options, answer = "multiple-choice", "['red', 'blue', 'dark red']", "B"
        if subject == "Math":
            kind, options, answer = "open", "[]", "['1/6', '0.17']"
        row = {
            "id": f"{split}_{subject}_1",
            "question": f"What is <image 1> of {subject}?",
            "options": options,
            "explanation": "",
            "answer": "?" if split == "test" else answer,
            "question_type": kind,
        }
        for place in range(1, 8):
            shown = place == 1 or (place == 2 and subject == "Art")
            row[f"image_{place}"] = image(number + place) if shown else None
        (folder / subject).mkdir(parents=True)
        write_table(folder / subject / f"{split}-00000-of-00001.parquet", [row], [f"image_{n}" for n in range(1, 8)])
    return folder


def write_mathvista(folder: Path) -> Path:
    """Three questions: a float, two choices, a whole number."""
    rows = [
        {
            "pid": pid,
            "question": query.split("Question: ")[1],
            "image": f"images/{pid}.jpg",
            "decoded_image": image(int(pid)),
            "choices": choices,
            "unit": None,
            "precision": precision,
            "answer": answer,
            "question_type": "multi_choice" if choices else "free_form",
            "answer_type": kind,
            "metadata": {"task": task, "skills": skills, "grade": "high school", "split": "testmini"},
            "query": query,
        }
        for pid, (query, choices, kind, precision, answer, task, skills) in MATHVISTA.items()
    ]
    (folder / "data").mkdir(parents=True)
    write_table(folder / "data/testmini-00000-of-00001-725687bf7a18d64b.parquet", rows, ["decoded_image"])
    return folder


def write_seedbench(folder: Path) -> Path:
    """Two questions about an image, one about a video."""
    folder.mkdir()
    questions = []
    for identity, (dimension, kind, file, question, answer) in SEED.items():
        record = {"answer": answer, "data_id": file, "data_type": kind, "question": question, "question_id": identity}
        record |= {f"choice_{letter}": f"choice {letter}" for letter in "abcd"}
        questions.append(record | {"question_type_id": dimension})
        name = f"SEED-Bench-image/{file}" if kind == "image" else f"SEED-Bench-video-image/{dimension}_{identity}.png"
        (folder / name).parent.mkdir(exist_ok=True)
        picture(folder / "picture.png", dimension)
        (folder / "picture.png").replace(folder / name)
    write(folder / "SEED-Bench.json", {"questions": questions, "question_type": DIMENSIONS})
    return folder


def write_mmbench(folder: Path, name: str = "mmbench_dev_20230712.tsv", *, answers: bool = True) -> Path:
    """Question 0 with two options, 1 with three, in all rotations; only the first row of each has the image itself."""
    folder.mkdir(exist_ok=True)
    columns = ["index", "question", "hint", "A", "B", "C", "D", "category", "image", "source", "l2-category", "comment"]
    rows = []
    for number, (options, hint, ability) in enumerate(
        [
            (["cat", "dog"], "", ("object_localization", "finegrained_perception (instance-level)")),
            (["red", "blue", "green"], "Look at\tthe hat.", ("image_style", "coarse_perception")),
        ]
    ):
        for turn in range(len(options)):
            turned = options[turn:] + options[:turn]
            row = dict.fromkeys(columns, "") | {"index": str(number + 1_000_000 * turn), "question": f"Which {number}?"}
            row |= dict(zip("ABCD", turned, strict=False)) | {"hint": hint}
            row |= {"category": ability[0], "l2-category": ability[1]}
            row["image"] = str(number) if turn else base64.b64encode(image(number)["bytes"]).decode()
            if answers:
                row["answer"] = "ABC"[turned.index(options[-1])]
            rows.append(row)
    with (folder / name).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*columns[:7], *(["answer"] if answers else []), *columns[7:]], delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    return folder


def image(number: int) -> dict[str, object]:
    """As the hub's ``Image`` feature stores one."""
    buffer = BytesIO()
    Image.new("RGB", (40 + number, 30), (7 * number % 256, 90, 20)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": f"{number}.png"}


def write_table(path: Path, rows: list[dict[str, object]], images: list[str]) -> None:
    """A Parquet file whose image columns have the hub's type even where all are null."""
    stored = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {name: pa.array([row[name] for row in rows], type=stored if name in images else None) for name in rows[0]}
    pq.write_table(pa.table(columns), path)
