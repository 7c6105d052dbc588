"""Records of every shape that people bring: the same conversation and images, or an error that says what is wrong."""

import base64
import gzip
import io
import json
import unicodedata
from urllib.parse import quote

import pytest
from PIL import Image

from llava_s2.data.image_files import ImageFiles
from llava_s2.data.json_records import Records
from llava_s2.data.record_shapes import images_of, unread_of
from llava_s2.data.sources import read_records
from llava_s2.data.training_records import check_records
from llava_s2.data.validate_record import validate_record
from llava_s2.errors import InputError
from llava_s2.model.templates import TEMPLATES

ASK = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Red."}]
MESSAGES = [{"role": "user", "content": "<image>\nWhat?"}, {"role": "assistant", "content": "Red."}]
PARTS = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "Red."}]},
]
SYSTEM = {"role": "system", "content": "In French."}


def base64_of(color):
    file = io.BytesIO()
    Image.new("RGB", (8, 6), color).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


RED = base64_of((255, 0, 0))


def answer(**flags):
    """Two exchanges, the first answer with other keys beside its text."""
    return [ASK[0], ASK[1] | flags, {"from": "human", "value": "Sure?"}, {"from": "gpt", "value": "Yes."}]


def own_image(part):
    return [{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}, PARTS[1]]


def said(question):
    return [{"role": "user", "content": question}, MESSAGES[1]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("images")
    Image.new("RGB", (8, 6), (255, 0, 0)).save(place / "a.png")
    Image.new("RGB", (8, 6), (0, 255, 0)).save(place / "b.png")
    return place


SAME = {
    "llava": {"image": "a.png", "conversations": ASK},
    "internvl": {"image": "a.png", "width_list": [8], "height_list": [6], "conversations": ASK},
    "images": {"images": ["a.png"], "conversations": ASK},
    "both, the same": {"images": ["a.png"], "image": "a.png", "conversations": ASK},
    "user and assistant": {
        "image": "a.png",
        "conversations": [{"from": "user", "value": "<image>\nWhat?"}, {"from": "assistant", "value": "Red."}],
    },
    "role and content": {"image": "a.png", "conversations": MESSAGES},
    "messages": {"images": ["a.png"], "messages": MESSAGES},
    "messages without a mark": {"images": ["a.png"], "messages": [MESSAGES[0] | {"content": "What?"}, MESSAGES[1]]},
    "parts": {"images": [{"path": "a.png", "bytes": None}], "messages": PARTS},
    "parts of a table": {
        "images": ["a.png"],
        "messages": [
            {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "Red."}]},
        ],
    },
    "a part with its image": {"messages": own_image({"type": "image", "image": "a.png"})},
    "a part with a path": {"messages": own_image({"type": "image", "path": "a.png"})},
    "a part with base64": {"messages": own_image({"type": "image", "source": {"type": "base64", "data": RED}})},
    "a part whose image is listed too": {
        "images": ["a.png"],
        "messages": own_image({"type": "image", "image": "file:///data/a.png"}),
    },
    "base64": {"image": RED, "conversations": ASK},
    "bytes in JSON": {"images": [{"bytes": RED, "path": None}], "messages": PARTS},
    "prompt of messages, completion of text": {"prompt": [PARTS[0]], "completion": "Red.", "images": ["a.png"]},
    "image_url": {"messages": own_image({"type": "image_url", "image_url": {"url": "a.png"}})},
    "query": {"query": "<image>What?", "response": "Red.", "images": ["a.png"]},
    "prompt and completion": {"prompt": [PARTS[0]], "completion": [PARTS[1]], "images": ["a.png"]},
    "prompt as text": {"prompt": "What?", "completion": "Red.", "image": "a.png"},
    "question": {"question": "What?", "answer": "Red.", "image": "a.png"},
    "alpaca": {"instruction": "What?", "input": "", "output": "Red.", "images": ["a.png"]},
    "finevision": {"images": ["a.png"], "texts": [{"user": "What?", "assistant": "Red.", "source": "x"}]},
    "finevision in columns": {"images": ["a.png"], "texts": {"user": ["What?"], "assistant": ["Red."]}},
    "qwen-vl": {
        "conversations": [{"from": "user", "value": "<img>a.png</img>\nWhat?"}, {"from": "assistant", "value": "Red."}]
    },
}


@pytest.mark.parametrize("name", SAME)
def test_known_shapes_are_the_same_conversation(folder, name):
    found = validate_record(SAME[name], TEMPLATES["vicuna_v1"], ImageFiles(folder), decode=True)
    assert [str(fault) for fault in found.faults] == []
    assert found.messages == [{"role": "user", "content": "<image>\nWhat?"}, {"role": "assistant", "content": "Red."}]
    assert ImageFiles(folder).open(found.images[0]).getpixel((0, 0)) == (255, 0, 0)
    assert len(found.images) == 1


@pytest.mark.parametrize(
    "record",
    [
        {"system": "In French.", "conversations": ASK},
        {"conversations": [{"from": "system", "value": "In French."}, *ASK]},
        {"messages": [SYSTEM, *MESSAGES]},
        {"messages": [SYSTEM, *PARTS]},
        {"query": "<image>What?", "response": "Red.", "system": "In French."},
        {"system_message": "In French.", "conversations": ASK},
    ],
)
def test_a_system_message_is_kept(folder, record):
    found = validate_record({"images": ["a.png"]} | record, TEMPLATES["vicuna_v1"], ImageFiles(folder))
    assert found.error is None
    assert [message["role"] for message in found.messages] == ["system", "user", "assistant"]
    assert found.messages[0]["content"] == "In French."


def test_history_images_by_index_and_images_inside_a_record(folder):
    record = {"query": "And?", "response": "No.", "history": [["One?", "Yes."]]}
    found = validate_record(record, TEMPLATES["vicuna_v1"], ImageFiles(folder))
    assert [message["content"] for message in found.messages] == ["One?", "Yes.", "And?", "No."]
    parts = [{"type": "image", "index": 1}, {"type": "image", "index": 0}, {"type": "text", "text": "Which?"}]
    record = {"images": ["a.png", "b.png"], "messages": [{"role": "user", "content": parts}, PARTS[1]]}
    assert images_of(record) == ["b.png", "a.png"]
    data = (folder / "b.png").read_bytes()
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    for image in (url, {"bytes": data, "path": None}):
        (held,) = images_of({"image": image, "conversations": ASK})
        assert ImageFiles(folder).open(held).getpixel((0, 0)) == (0, 255, 0)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"images": ["a.png"], "conversations": [{"from": "human", "value": "What?"}, ASK[1]]}, '0 <image>.*"images"'),
        ({"image_path": "a.png", "conversations": [{"from": "human", "value": "What?"}, ASK[1]]}, '"image_path": not'),
        ({"pictures": ["a.png"], "messages": MESSAGES}, '"pictures": not read, and it looks like images'),
        ({"video": "a.mp4", "conversations": ASK}, '"video": videos and sounds are not trained on'),
        ({"messages": own_image({"type": "video", "video": "a.mp4"})}, "parts are text and images, not 'video'"),
        ({"image": "a.png", "images": ["b.png"], "conversations": ASK}, '"image" and "images", which differ'),
        ({"image": "a.png", "system": "a", "messages": [SYSTEM, *MESSAGES]}, "a system turn; keep one"),
        ({"image": "a.png", "messages": [*MESSAGES, SYSTEM]}, "turn 2: a system message stands first"),
        ({"messages": MESSAGES, "conversations": ASK, "image": "a.png"}, 'has "conversations" and "messages"'),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "pair of preferences"),
        ({"text": "words alone"}, r"\"conversations\" must be a list.*keys: 'text'"),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "</s>"}]}, "nothing to learn"),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "observation", "value": "1"}, ASK[1]]}, "tool"),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": "f"}, ASK[1]]},
            "turn 1: a call of a tool",
        ),
        ({"image": "https://x.org/a.png", "conversations": ASK}, "fetch it first"),
        ({"image": "data:image/png;base64,%%%", "conversations": ASK}, "base64 cannot be read"),
        ({"photo": "iVBORw0KGgo" * 30, "query": "What?", "response": "Red."}, '"photo": not read'),
        ({"image": "a.png", "messages": said("<|image_1|>What?")}, r"<\|image_1\|> is another model's mark"),
        ({"image": "a.png", "messages": said("<|vision_start|><|image_pad|><|vision_end|>")}, "another model's mark"),
        ({"messages": said("<video>\nWhat?")}, "<video> is another model's mark"),
        ({"question": "What?", "context": "A flag.", "answer": "Red."}, '"context" beside a question is not read'),
        ({"messages": [MESSAGES[1] | {"role": "user"}, MESSAGES[1] | {"reasoning": "Hm."}]}, '"reasoning" is not'),
        ({"conversations": [ASK[0] | {"role": "assistant"}, ASK[1]]}, '"from" and "role" say different things'),
        ({"conversations": [ASK[0] | {"content": "Who?"}, ASK[1]]}, '"value" and "content", which differ'),
        ({"image_file": "000123", "messages": said("What?")}, '"image_file": not read, and it looks like images'),
        ({"media": {"mime": "image/png", "data": "x"}, "messages": said("What?")}, '"media": not read'),
        ({"pixel_values": [[[0.1]]], "messages": said("What?")}, '"pixel_values": not read'),
        ({"image_base64": RED, "messages": said("What?")}, '"image_base64": not read'),
        ({"audio": {"array": [0.1], "sampling_rate": 8}, "messages": said("What?")}, '"audio": videos and sounds'),
        ({"video": "clip", "messages": said("What?")}, '"video": videos and sounds'),
        ({"image": "a.png", "videos": ["a.mp4"], "conversations": ASK}, '"videos": videos and sounds'),
        (
            {"messages": [said("What?")[0] | {"images": ["a.png"]}, MESSAGES[1]]},
            '"images": media are not read in a turn',
        ),
        ({"messages": [said("What?")[0] | {"attachments": [{"url": "u"}]}, MESSAGES[1]]}, '"attachments": media'),
        ({"image": "b.png", "messages": own_image({"type": "image", "image": "a.png"})}, "other images in its turns"),
        ({"messages": said([{"type": "text", "text": "What?", "image": "a.png"}])}, '"image": media are not read'),
        ({"messages": said([{"text": "What?", "image": "a.png"}])}, "text in an image's part"),
        ({"images": ["a.png"], "messages": said("[IMG]What?")}, r"\[IMG\] is another model's mark"),
        ({"images": ["a.png"], "messages": said("<img>What?")}, "<img> is another model's mark"),
        ({"messages": said("<start_of_image>What?")}, "<start_of_image> is another model's mark"),
        ({"messages": said(f"![x](data:image/png;base64,{RED}) What?")}, "another model's mark"),
        ({"image": "a.png", "conversations": answer(weight=0.5)}, '"weight" 0.5: must be 0 or 1'),
        ({"image": "a.png", "conversations": answer(train="false")}, "\"train\" 'false': must be 0 or 1"),
        ({"image": "a.png", "conversations": answer(train_on=False)}, '"train_on" is not read'),
        ({"image": "a.png", "conversations": answer(mask=True)}, '"mask" is not read'),
        ({"image": "a.png", "conversations": answer(train_detail=[{"train": False}])}, '"train_detail" is not read'),
        ({"image": "a.png", "conversations": [ASK[0] | {"train": True}, ASK[1]]}, "only answers are learnt"),
        ({"image": "a.png", "conversations": [ASK[0], ASK[1] | {"weight": 0}]}, "all have weight 0"),
        ({"image": "a.png", "conversations": ASK, "weight": 0}, '"weight" of a record is not read'),
        ({"image": "a.png", "conversations": ASK, "loss_mask": [0, 1]}, '"loss_mask" of a record is not read'),
        ({"image": "a.png", "conversations": ASK, "loss_mask": "[0, 1]"}, '"loss_mask" of a record is not read'),
        (
            {"conversations": ASK, "image": "a.png", "sys": "Be kind to all."},
            '"sys" is not read, and looks like a system',
        ),
        ({"messages": MESSAGES, "image": "a.png", "history": [["a", "b"]]}, '"history" beside "messages"'),
        ({"question": "Is it?", "answer": ["Yes", "No"], "image": "a.png"}, "2 texts where one belongs"),
        ({"question": "Is it?", "answer": 3, "image": "a.png"}, "must be text, not int"),
        ({"question": "Is it?", "answer": "B", "A": "x", "B": "y", "image": "a.png"}, "choices under"),
        ({"prompt": "a", "response": "b", "rejected_response": "c"}, "set of preferences"),
        ({"prompt": "a", "completion": "b", "label": False}, "set of preferences"),
        ({"messages": MESSAGES, "image": "a.png", "kto_tag": False}, "set of preferences"),
        ({"messages": MESSAGES, "image": "a.png", "tools": [{"name": "f"}]}, '"tools" is not read; write the tools'),
        ({"messages": MESSAGES, "image": "a.png", "objects": {"bbox": [[1, 2]]}}, '"objects" is not read; write its'),
        ({"image": "a.png", "conversations": {"from": ["human", "gpt"], "value": ["q"]}}, "columns have 1, 2 turns"),
        ({"images": ["a.png"], "texts": ["What?", "Red."]}, '"texts" must be pairs'),
        ({"conversations": [{"user": "What?", "assistant": "Red."}]}, r"role \(its keys are 'user', 'assistant'\)"),
    ],
)
def test_what_is_not_read_is_told(folder, record, message):
    found = validate_record(record, TEMPLATES["vicuna_v1"], ImageFiles(folder))
    with pytest.raises(InputError, match=message):
        raise found.error


def test_a_literal_mark_is_a_word_and_no_image(folder):
    turns = [{"from": "human", "value": "<image>\nWhat is \\<image>?"}, {"from": "gpt", "value": "\\<image> is a tag."}]
    found = validate_record({"image": "a.png", "conversations": turns}, TEMPLATES["vicuna_v1"], ImageFiles(folder))
    assert found.error is None
    assert [message["content"] for message in found.messages] == [
        "<image>\nWhat is < image>?",
        "< image> is a tag.",
    ]


LAYOUTS = {
    "wrapped": lambda rows: json.dumps({"info": {"version": 1}, "data": rows, "licence": "none"}),
    "by id": lambda rows: json.dumps({str(n): row for n, row in enumerate(rows)}, indent=1),
    "lines": lambda rows: "\n".join(map(json.dumps, rows)),
    "one line": lambda rows: json.dumps(rows[0]),
    "array": json.dumps,
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_a_file(tmp_path, monkeypatch, layout, packed):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rows = [{"id": n, "images": ["a.png"], "conversations": ASK} for n in range(5)]
    text = LAYOUTS[layout](rows).encode()
    path = tmp_path / ("data.json.gz" if packed else "data.json")
    path.write_bytes(gzip.compress(text) if packed else text)
    records = Records(path)
    assert [records[n] for n in range(len(records))] == (rows[:1] if layout == "one line" else rows)
    assert records.where(0).startswith(f"{path}: record 0 (id 0, line ")


def test_a_packed_file_that_is_cut_off(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "a.jsonl.gz"
    packed = gzip.compress(b"".join(b'{"a": %d}\n' % number for number in range(999)))
    for damaged in (packed[:-9], packed[:1000] + bytes(99) + packed[1099:]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"a\.jsonl\.gz: cannot be unpacked"):
            read_records(path)


def test_names_in_other_forms(tmp_path):
    Image.new("RGB", (8, 6)).save(tmp_path / unicodedata.normalize("NFD", "café 1.png"))
    files = ImageFiles(tmp_path)
    name = unicodedata.normalize("NFC", "café 1.png")
    for form in (name, quote(name), f"file://{quote(str(tmp_path / name))}"):
        assert files.open(form).size == (8, 6)
    with pytest.raises(InputError, match="no such image file"):
        files.find("cafe 1.png")


def test_records_under_two_names_and_keys_named_like_images_are_told(folder, tmp_path):
    rows = [{"image": "a.png", "conversations": ASK}]
    (tmp_path / "d.json").write_text(json.dumps({"info": [1], "train": rows, "n": {"a": 1}, "val": rows}))
    with pytest.raises(InputError, match=r"records under several names, 'val' too"):
        Records(tmp_path / "d.json")
    rows = [{"image_id": 7, "topic": "x", "question": "What is <video> in HTML? ![x](a.png)", "answer": "A tag."}]
    (tmp_path / "d.json").write_text(json.dumps(rows))
    media, others = check_records(tmp_path / "d.json", folder, "vicuna_v1").notices
    assert '"image_id" looks like media and is not read' in media
    assert others.endswith(
        "d.json: keys that are not read: topic (1 records), Markdown's ![…](…) in questions (1 records)"
    )


def test_a_run_says_how_many_records_have_images(folder, tmp_path):
    rows = [{"images": ["a.png"], "conversations": ASK}] * 3
    rows += [{"conversations": [{"from": "human", "value": "q"}, ASK[1]]}]
    (tmp_path / "d.json").write_text(json.dumps(rows))
    assert check_records(tmp_path / "d.json", folder, "vicuna_v1").describe == "3 records with images, 1 text alone"


def test_flags_that_ask_for_nothing_and_keys_that_hold_nothing_do_not_stop_a_record(folder):
    turns = answer(weight=1, train=True, loss=None, mask=False, images=[], name="gpt", train_detail=None)
    record = {
        "image": "a.png",
        "conversations": turns,
        "weight": 1,
        "video": None,
        "audio": "",
        "label": True,
        "tools": "[]",
    }
    record |= {"answers": ["Red."], "mask": [[0, 1]], "url": "https://x.org/1", "instruction": "Look at the image."}
    found = validate_record(record, TEMPLATES["vicuna_v1"], ImageFiles(folder))
    assert [str(fault) for fault in found.faults] == []
    told = ["weight", "label", "tools", "answers", "mask", "url", "instruction", "mask in turns", "name in turns"]
    unread, in_turns = unread_of(record)
    assert [*unread, *in_turns] == told
