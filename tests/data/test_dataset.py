"""Checking a data file, examples and batches."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig

from llava_s2 import S2VisionConfig, encode_conversation
from llava_s2.data.collator import Collator
from llava_s2.data.dataset import ConversationDataset
from llava_s2.data.training_records import check_records
from llava_s2.errors import InputError
from llava_s2.model.processor import build_processor
from llava_s2.model.tokenizer import load_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "llava_tiny"
RUN = 16


@pytest.fixture(scope="module")
def processor():
    tower = S2VisionConfig(backbone_config=AutoConfig.from_pretrained(GOLDEN / "clip-tiny"), scales=[56, 112, 168])
    return build_processor(load_tokenizer(GOLDEN / "vicuna-tiny"), tower, [0.5] * 3, [0.25] * 3)


def turns(*texts):
    return [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(texts)]


MIXED = [
    {"id": "text", "conversations": turns("Say a word.", "Word.")},
    {"id": "one", "image": "black.png", "conversations": turns("<image>\nColour?", "Black.", "Sure?", "Yes.")},
    {"image": ["white.png", "black.png"], "conversations": turns("<image> or <image>?", "First.")},
]


@pytest.fixture
def folder(tmp_path):
    for name, shade in (("black", 0), ("white", 255)):
        Image.new("RGB", (30, 30), (shade,) * 3).save(tmp_path / f"{name}.png")
    return tmp_path


def write(folder, records):
    path = folder / "data.json"
    path.write_text(json.dumps(records))
    return path


def dataset_of(folder, records, processor, max_length=2048, template="vicuna_v1"):
    checked = check_records(write(folder, records), folder, template)
    return ConversationDataset(checked, processor, template, max_length)


def test_examples_of_a_mixed_file(folder, processor):
    dataset = dataset_of(folder, MIXED, processor)
    assert len(dataset) == 3
    for item, record, shades in zip((dataset[i] for i in range(3)), MIXED, ([], [0], [255, 0]), strict=True):
        encoded = encode_conversation(record["conversations"], processor)
        assert {name: item[name].tolist() for name in encoded} == encoded
        if not shades:
            assert "pixel_values" not in item
            continue
        assert item["pixel_values"].dtype == torch.uint8
        assert item["pixel_values"].equal(torch.tensor(shades).view(-1, 1, 1, 1).expand(-1, 3, 168, 168))


def test_lengths_tell_modality(folder):
    assert check_records(write(folder, MIXED), folder, "vicuna_v1").lengths.tolist() == [-4, 5, 4]


def test_what_is_noted_of_records_behind_one_that_is_left_out_is_their_own(folder):
    records = [MIXED[0], {"conversations": turns("No answer")}, MIXED[1], MIXED[2]]
    checked = check_records(write(folder, records), folder, "vicuna_v1", skip_bad=True)
    assert checked.images.tolist() == [0, 1, 1, 2]  # the third stands in the place of the second
    assert checked.lengths.tolist() == [-4, 5, 5, 4]


def test_batches_pad_on_the_right_and_keep_every_image(folder, processor):
    dataset = dataset_of(folder, MIXED, processor)
    items = [dataset[i] for i in range(3)]
    batch = Collator(processor.tokenizer.pad_token_id)(items)
    assert torch.equal(batch["pixel_values"], torch.cat([items[1]["pixel_values"], items[2]["pixel_values"]]))
    longest = max(len(item["input_ids"]) for item in items)
    for row, item in enumerate(items):
        length = len(item["input_ids"])
        assert batch["input_ids"][row, :length].tolist() == item["input_ids"].tolist()
        assert batch["labels"][row].tolist() == item["labels"].tolist() + [-100] * (longest - length)
        assert batch["attention_mask"][row].tolist() == [1] * length + [0] * (longest - length)
    assert "pixel_values" not in Collator(0)(items[:1] * 2)


def test_too_long_loses_its_end_and_the_images_there(folder, processor):
    record = {"image": ["black.png", "white.png"], "conversations": turns("<image>\na", "one", "<image>\nb", "two")}
    whole = encode_conversation(record["conversations"], processor)
    second_image = [i for i, token in enumerate(whole["input_ids"]) if token == processor.image_token_id][RUN]
    for max_length, kept, images in (
        (len(whole["input_ids"]), len(whole["input_ids"]), 2),
        (len(whole["input_ids"]) - 1, len(whole["input_ids"]) - 1, 2),
        (second_image + RUN, second_image + RUN, 2),
        (second_image + RUN - 1, second_image, 1),
        (second_image + 1, second_image, 1),
        (second_image, second_image, 1),
    ):
        item = dataset_of(folder, [record], processor, max_length)[0]
        assert item["input_ids"].tolist() == whole["input_ids"][:kept]
        assert item["labels"].tolist() == whole["labels"][:kept]
        assert item["pixel_values"].shape == (images, 3, 168, 168)


def test_a_target_beyond_the_length_is_found_before_training(folder, processor):
    records = [MIXED[0], {"id": "long", "conversations": turns("word " * 80, "answer")}]
    length = len(encode_conversation(records[1]["conversations"], processor)["input_ids"])
    first_target = length - 2
    assert len(dataset_of(folder, records, processor, first_target + 1)) == 2
    with pytest.raises(InputError, match=rf"record 1 \(id 'long', line 1\): no target within .* {first_target} of"):
        dataset_of(folder, records, processor, first_target)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"image": "black.png", "conversations": turns("What?", "a")}, '0 <image> in its turns, but 1 in "image"'),
        ({"conversations": turns("<image> What?", "a")}, "1 <image> in its turns, but 0"),
        ({"image": ["black.png"], "conversations": turns("<image> <image>", "a")}, "2 <image> in its turns, but 1"),
        ({"image": "none.png", "conversations": turns("<image>", "a")}, r"none\.png: no such image file"),
        ({"image": 5, "conversations": turns("<image>", "a")}, '"image" must be'),
        ({"image": "text.png", "conversations": turns("<image>", "a")}, r"text\.png: not an image"),
        ({"image": "cut.png", "conversations": turns("<image>", "a")}, r"cut\.png: truncated"),
        ({"image": "black.png"}, '"conversations" must be a list'),
        ({"conversations": turns("q", "")}, "the answer is empty, so there is nothing to learn"),
    ],
)
def test_a_bad_record_is_named(folder, record, message):
    (folder / "text.png").write_text("no picture")
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(noise).save(folder / "cut.png")
    (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:2000])
    path = write(folder, [*MIXED, {"id": "bad"} | record, MIXED[0]])
    with pytest.raises(InputError, match=message) as caught:
        check_records(path, folder, "vicuna_v1")
    assert str(caught.value).startswith(f"{path}: record 3 (id 'bad', line 1): ")
    assert "at fault" not in str(caught.value)


def test_how_many_records_are_at_fault_is_told(folder):
    path = write(folder, [MIXED[0], {"conversations": []}, {"conversations": turns("q")}])
    with pytest.raises(InputError, match=r"record 1 .*\(2 records of 3 .*: 1 malformed, 1 no_target; llava-s2 "):
        check_records(path, folder, "vicuna_v1")


def test_a_missing_image_folder(folder):
    with pytest.raises(InputError, match="nowhere: no such image folder"):
        check_records(write(folder, MIXED), folder / "nowhere", "vicuna_v1")
