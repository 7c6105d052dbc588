"""A data file with every kind of fault, and what there is to be found."""

import json

import numpy as np
from PIL import Image


def turns(*texts):
    return [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(texts)]


ASK = "<image>\nWhat is it?"
RECORDS = [
    {"id": "a", "image": "ok.jpg", "conversations": turns(ASK, "A cup.")},
    {"id": "gone", "image": "none.jpg", "conversations": turns(ASK, "A cup.")},
    {"id": "cut", "image": "cut.jpg", "conversations": turns(ASK, "A cup.")},
    {"id": "tag", "image": "ok.jpg", "conversations": turns("What is it?", "A cup.")},
    {"id": "who", "image": "ok.jpg", "conversations": [{"from": "narrator", "value": ASK}]},
    {"id": "mute", "image": "ok.jpg", "conversations": turns(ASK, "A cup.", " ", "It is red.")},
    {"id": "none", "image": "ok.jpg", "conversations": turns(ASK, "")},
    {"id": "open", "image": "ok.jpg", "conversations": turns(ASK)},
    {"id": "long", "image": "ok.jpg", "conversations": turns(ASK, "word " * 300)},
    None,  # stands for BROKEN
    {"id": "a", "image": "ok.jpg", "conversations": turns(ASK, "Another cup.")},
    {"id": "number", "image": 7, "conversations": turns(ASK, "A cup.")},
    {"id": "z", "conversations": turns("Say a word.", "Word.")},
]
BROKEN = '{"id": "half", "conversations": [{"from": "human", "value": "<image>"}, '
FOUND = {
    "malformed": [9, 11],
    "roles": [4],
    "image_placeholders": [3],
    "missing_image": [1],
    "corrupt_image": [2],
    "no_target": [6, 7],
    "empty_turn": [5, 6],
    "too_long": [8],
    "duplicate_id": [10],
}
CLEAN = [0, 12]


def write_images(folder):
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    for name in ("ok", "cut"):
        Image.fromarray(noise).save(folder / f"{name}.jpg")
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:1500])


def write_faulty(path):
    """JSON lines or an array, by the name's ending; a record a line."""
    lines = [BROKEN if record is None else json.dumps(record) for record in RECORDS]
    array = path.suffix == ".json"
    path.write_text(("[" if array else "") + (",\n" if array else "\n").join(lines) + ("]" if array else ""))
    return path
