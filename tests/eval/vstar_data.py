"""A V* folder made by hand, in the official layout."""

import json
from pathlib import Path

from PIL import Image

ATTRIBUTES = {
    "sa_1": (
        "What is the color of the cup?",
        ["The color of the cup is red.", "The color of the cup is blue.", "It is green."],
    ),
    "sa_2": (
        "What is the material of the glove?",
        ["The glove is rubber.", "The glove is cotton.", "The glove is leather."],
    ),
    "sa_3": ("What is the color of the dog?", ["The dog is brown.", "The dog is white."]),
}
POSITIONS = {
    "sa_4": (
        "Is the dog on the left or right side of the car?",
        ["The dog is on the left side.", "The dog is on the right side."],
    ),
    "sa_5": ("Is the cup above or below the lamp?", ["The cup is below the lamp.", "The cup is above the lamp."]),
}
SENTENCE = "Answer with the option's letter from the given choices directly."


def write_vstar(folder: Path) -> Path:
    """Three attribute questions and two of position, each with a small picture of its own."""
    for category, questions in (("direct_attributes", ATTRIBUTES), ("relative_position", POSITIONS)):
        (folder / category).mkdir(parents=True)
        for number, (name, (question, options)) in enumerate(questions.items()):
            image = Image.linear_gradient("L").resize((90 + 20 * number, 70)).convert("RGB")
            image.paste((250, 40 * number, 20), (10, 10, 30, 40))
            image.save(folder / category / f"{name}.jpg")
            record = {"question": question, "options": options, "target_object": ["x"], "bbox": [[10, 10, 20, 30]]}
            (folder / category / f"{name}.json").write_text(json.dumps(record))
    return folder


def write_lettered(folder: Path, first: int = 1) -> Path:
    """test_questions.jsonl beside it: the options as single words' sentences, turned round so that A is not right."""
    lines = []
    for category, questions in (("direct_attributes", ATTRIBUTES), ("relative_position", POSITIONS)):
        for name, (question, options) in questions.items():
            turned = options[first:] + options[:first]
            text = "\n".join([question, *(f"({'ABC'[i]}) {option}" for i, option in enumerate(turned)), SENTENCE])
            lines.append(
                {
                    "question_id": str(len(lines)),
                    "image": f"{category}/{name}.jpg",
                    "text": text,
                    "category": category,
                    "label": "ABC"[turned.index(options[0])],
                }
            )
    (folder / "test_questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def write_table(folder: Path, path: Path, *, images: bool) -> None:
    """test_questions.jsonl as the hub's Parquet file, which names images, or as a copy that has them inside."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [json.loads(line) for line in (folder / "test_questions.jsonl").read_text().splitlines()]
    if images:
        for row in rows:
            row["image"] = {"bytes": (folder / row["image"]).read_bytes(), "path": Path(row["image"]).name}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
