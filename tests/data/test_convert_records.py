"""``llava-s2 data convert``: there and back, and what the records train on stays the same."""

import json

import pytest
from PIL import Image

from llava_s2.cli import main
from llava_s2.data.image_files import ImageFiles
from llava_s2.data.sources import read_records
from llava_s2.data.validate_record import validate_record
from llava_s2.model.templates import TEMPLATES

RECORDS = [
    {"id": "one", "image": "a.png", "conversations": ["<image>\nWhat?", "Red.", "And \\<image>?", "A tag."]},
    {"id": "two", "image": ["a.png", "b.png"], "conversations": ["Left <image> right <image>", "No."]},
    {"id": "text", "system": "Be brief.", "conversations": ["Hello", "Hi."]},
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name, red in (("a", 255), ("b", 9)):
        Image.new("RGB", (8, 6), (red, 0, 0)).save(tmp_path / f"{name}.png")
    rows = []
    for record in RECORDS:
        said = [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(record["conversations"])]
        rows.append(record | {"conversations": said})
    (tmp_path / "data.json").write_text(json.dumps(rows))
    return tmp_path


def trained_on(path, images):
    """Messages and first pixels of all records."""
    reader, files = read_records(path), ImageFiles(images)
    found = [validate_record(reader[n], TEMPLATES["chatml"], files) for n in range(len(reader))]
    assert [each.error for each in found] == [None] * len(found)
    return [(each.messages, [files.open(image).getpixel((0, 0)) for image in each.images]) for each in found]


@pytest.mark.parametrize(("shape", "name"), [("messages", "m.jsonl"), ("sharegpt", "s.json"), ("datasets", "ds")])
def test_there_and_back(folder, shape, name):
    start = ["data", "convert"]
    assert main([*start, f"{folder}/data.json", f"{folder}/{name}", "--to", shape, "--images", str(folder)]) == 0
    wanted = trained_on(folder / "data.json", folder)
    assert trained_on(folder / name, folder) == wanted
    assert main([*start, f"{folder}/{name}", f"{folder}/back.json"]) == 0
    images = folder / "back_images" if shape == "datasets" else folder
    assert trained_on(folder / "back.json", images) == wanted


def test_messages_have_transformers_parts(folder):
    assert main(["data", "convert", f"{folder}/data.json", f"{folder}/m.jsonl", "--to", "messages"]) == 0
    first = json.loads((folder / "m.jsonl").read_text().splitlines()[0])
    assert first["images"] == ["a.png"]
    assert first["messages"][0] == {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}


def test_a_record_that_cannot_be_read_is_named_and_nothing_is_written(folder, capsys):
    (folder / "bad.json").write_text(json.dumps([{"id": 7, "text": "x"}]))
    assert main(["data", "convert", f"{folder}/bad.json", f"{folder}/out.json"]) == 2
    assert "bad.json: record 0 (id 7, line 1): " in capsys.readouterr().err
    assert not (folder / "out.json").exists()
