"""`encode_conversation` against the original LLaVA's ids and labels, and its masks against the answers themselves."""

import copy
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoConfig

from llava_s2 import S2VisionConfig, encode_conversation
from llava_s2.data.conversation import encode_record
from llava_s2.data.convert_records import SHAPES
from llava_s2.data.record_shapes import read_turns
from llava_s2.errors import InputError
from llava_s2.model.labels import encode_messages
from llava_s2.model.processor import build_processor
from llava_s2.model.templates import TEMPLATES, find_template
from llava_s2.model.tokenizer import load_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "llava_tiny"
CASES = json.loads((GOLDEN / "cases.json").read_text())
TEMPLATE_OF = {"v1": "vicuna_v1", "llava_llama_2": "llama_2", "plain": "plain"}
IMAGE_TOKENS = CASES["num_image_tokens"]


@pytest.fixture(scope="module")
def processor():
    tower = S2VisionConfig(backbone_config=AutoConfig.from_pretrained(GOLDEN / "clip-tiny"), scales=CASES["scales"])
    return build_processor(load_tokenizer(GOLDEN / "vicuna-tiny"), tower, [0.5] * 3, [0.5] * 3)


def collapsed(encoded, image_token_id):
    """One -200 for every run of image tokens, as the original marks an image."""
    ids, labels, run = [], [], 0
    for token, label in zip(encoded["input_ids"], encoded["labels"], strict=True):
        if token == image_token_id:
            run += 1
            assert label == -100
            if run < IMAGE_TOKENS:
                continue
            token, run = -200, 0
        else:
            assert run == 0, "a run of image tokens of another length"
        ids.append(token)
        labels.append(label)
    return ids, labels


@pytest.mark.parametrize("number", range(len(CASES["train"])))
def test_ids_and_labels_are_the_originals(processor, number):
    record = CASES["train"][number]
    before = copy.deepcopy(record["conversations"])
    encoded = encode_conversation(record["conversations"], processor, TEMPLATE_OF[record["version"]])
    assert record["conversations"] == before
    assert collapsed(encoded, processor.image_token_id) == (record["input_ids"], record["labels"])


def test_the_default_template_is_vicuna(processor):
    turns = CASES["train"][0]["conversations"]
    assert encode_conversation(turns, processor) == encode_conversation(turns, processor, "vicuna_v1")


def test_ids_are_what_the_processor_makes_of_images_and_text(processor):
    turns = [
        {"from": "human", "value": "Left <image> right <image>\nSame?"},
        {"from": "gpt", "value": "No."},
        {"from": "human", "value": "Sure? <image>"},
        {"from": "gpt", "value": "Yes."},
    ]
    messages = [
        {"role": "user", "content": "Left <image> right <image>\nSame?"},
        {"role": "assistant", "content": "No."},
        {"role": "user", "content": "<image>\nSure?"},
        {"role": "assistant", "content": "Yes."},
    ]
    text = processor.apply_chat_template(messages, chat_template=TEMPLATES["vicuna_v1"])
    whole = processor(images=[Image.new("RGB", (20, 10))] * 3, text=text)
    assert encode_conversation(turns, processor)["input_ids"] == list(whole["input_ids"][0])


# Without "▁", which SentencePiece cannot tell from a space, and what could spell a special token.
words = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="<>▁"), min_size=1, max_size=30
).filter(lambda text: text.strip())
exchanges = st.lists(st.tuples(words, words), min_size=1, max_size=4)


@settings(deadline=None)
@given(exchanges=exchanges, images=st.booleans(), template=st.sampled_from(["vicuna_v1", "llama_2"]))
def test_targets_are_the_answers_and_nothing_else(processor, exchanges, images, template):
    turns = []
    for number, (question, answer) in enumerate(exchanges):
        tag = "<image>\n" if images and number == 0 else ""
        turns += [{"from": "human", "value": tag + question}, {"from": "gpt", "value": answer}]
    encoded = encode_conversation(turns, processor, template)
    targets, inside = [], False
    for token, label in zip(encoded["input_ids"], encoded["labels"], strict=True):
        assert label in (-100, token)
        if label != -100 and not inside:
            targets.append([])
        inside = label != -100
        if inside:
            targets[-1].append(label)
        if token == processor.tokenizer.eos_token_id:
            inside = False
    space = " " if template == "llama_2" else ""
    assert [processor.tokenizer.decode(ids) for ids in targets] == [f"{answer}{space}</s>" for _, answer in exchanges]


@settings(deadline=None)
@given(caption=words)
def test_plain_learns_the_caption_alone(processor, caption):
    turns = [{"from": "human", "value": "Describe it.\n<image>"}, {"from": "gpt", "value": caption}]
    encoded = encode_conversation(turns, processor, "plain")
    start = 1 + IMAGE_TOKENS
    assert (
        encoded["input_ids"][:start] == [processor.tokenizer.bos_token_id] + [processor.image_token_id] * IMAGE_TOKENS
    )
    assert encoded["labels"] == [-100] * start + encoded["input_ids"][start:]
    assert processor.tokenizer.decode(encoded["labels"][start:]) == caption + "\n"


HUMAN, GPT = {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([], "empty or missing"),
        (None, "empty or missing"),
        ("text", "list of turns"),
        ([{"from": "narrator", "value": "q"}, GPT], "turn 0: unknown role 'narrator'"),
        ([HUMAN, {"value": "a"}], r"turn 1: unknown role \(its keys are 'value'\)"),
        ([HUMAN, "a"], "turn 1: unknown role"),
        ([HUMAN, {"from": "gpt"}], 'turn 1: "value" must be text'),
        ([HUMAN, {"from": "gpt", "value": 3}], 'turn 1: "value" must be text'),
        ([HUMAN, HUMAN, GPT], "turn 1: human and gpt must take turns"),
        ([HUMAN, GPT, GPT], "turn 2: human and gpt must take turns"),
        ([GPT, GPT], "turn 1: human and gpt must take turns"),
        ([HUMAN], "no target"),
        ([GPT, HUMAN], "no target"),
        ([HUMAN, {"from": "gpt", "value": " \n"}], "the answer is empty"),
        ([HUMAN, {"from": "gpt", "value": ""}] * 2, "the answer is empty"),
        ([HUMAN, {"from": "gpt", "value": "see <image>"}], "turn 1: <image> in an answer"),
        ([{"from": "human", "value": "\ud83d"}, GPT], "turn 0: holds half of a surrogate"),
    ],
)
def test_bad_conversations(processor, turns, message):
    with pytest.raises(InputError, match=message):
        encode_conversation(turns, processor)


@pytest.mark.parametrize("template", ["vicuna_v1", "llama_2"])
@pytest.mark.parametrize("empty", ["", " \n"])
def test_an_empty_answer_among_others_takes_no_loss(processor, template, empty):
    """Not even for ending at once: the labels are those of the other answer, whose text and end they spell."""
    for answers in ((empty, "Yes, a cat."), ("Yes, a cat.", empty)):
        turns = [HUMAN, {"from": "gpt", "value": answers[0]}, HUMAN, {"from": "gpt", "value": answers[1]}]
        encoded = encode_conversation(turns, processor, template)
        learnt = [label for label in encoded["labels"] if label != -100]
        assert processor.decode(learnt).strip() in ("Yes, a cat.</s>", "Yes, a cat. </s>")
        assert encoded["input_ids"].count(processor.tokenizer.eos_token_id) >= 2  # the model still sees both ends


def test_an_answer_of_special_tokens_alone_is_learnt():
    """``<loc_001>`` is a word for a detector, whatever the tokenizer's file calls it; ``</s>`` is none."""
    tokenizer = load_tokenizer(GOLDEN / "vicuna-tiny")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<loc_001>", "<loc_002>"]})
    tower = S2VisionConfig(backbone_config=AutoConfig.from_pretrained(GOLDEN / "clip-tiny"), scales=[56])
    detector = build_processor(tokenizer, tower, [0.5] * 3, [0.5] * 3)
    turns = [HUMAN, {"from": "gpt", "value": "<loc_001><loc_002>"}, HUMAN, {"from": "gpt", "value": "</s>"}]
    labels = encode_conversation(turns, detector)["labels"]
    learnt = detector.tokenizer.convert_ids_to_tokens([label for label in labels if label != -100])
    assert [token for token in learnt if token != "▁"] == ["<loc_001>", "<loc_002>", "</s>"]


UNMARKED = (
    "{% for message in messages %}{{ message.role + ': ' + message.content }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.mark.parametrize("key", [{"weight": 0}, {"train": False}, {"loss": False}])
@pytest.mark.parametrize("template", ["vicuna_v1", "llama_2", UNMARKED])
def test_a_reply_that_asks_for_no_loss_takes_none(processor, template, key):
    turns = [HUMAN, {"from": "gpt", "value": "Wrong."} | key, HUMAN, {"from": "gpt", "value": "Right."}]
    encoded = encode_conversation(turns, processor, template)
    assert (
        processor.decode([label for label in encoded["labels"] if label != -100]).split("</s>")[0].strip() == "Right."
    )
    assert "Wrong." in processor.decode(encoded["input_ids"])
    for write in SHAPES.values():  # a converted record asks for the same
        again = encode_record(write(read_turns({"conversations": turns}), []), processor, find_template(template))
        assert again == encoded


def test_a_chat_template_that_marks_no_reply(processor):
    messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    with pytest.raises(InputError, match=r"marks no reply.*--template"):
        encode_messages(messages, processor, "{% for message in messages %}{{ message.content }}{% endfor %}")


def test_bad_templates_and_what_plain_cannot_take(processor):
    with pytest.raises(InputError, match=r"v7: not known.*vicuna_v1"):
        encode_conversation([HUMAN, GPT], processor, "v7")
    for turns in ([HUMAN, GPT], [{"from": "human", "value": "<image>"}, GPT, HUMAN, GPT]):
        with pytest.raises(InputError, match="plain template needs one human turn with an image"):
            encode_conversation(turns, processor, "plain")
