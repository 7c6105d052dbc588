"""Option losses against the original LLaVA code and against whole sequences run one by one."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import CLIPImageProcessorPil

from llava_s2.data.image_decoding import open_image
from llava_s2.errors import InputError
from llava_s2.eval.generation import answers
from llava_s2.formats.load import load_pretrained
from llava_s2.model.inference import prepare_image, token_arguments, user_message
from llava_s2.model.labels import encode_messages
from llava_s2.model.option_ranking import rank_options
from llava_s2.model.templates import TEMPLATES

GOLDEN = Path(__file__).parents[1] / "golden/llava_tiny"
CASES = json.loads((GOLDEN / "cases.json").read_text())["cases"]
TOWER = str(GOLDEN / "clip-tiny")


def pictures_of(processor, images):
    return tuple(prepare_image(processor, image) for image in images)


def option_losses(model, processor, images, prompt, options):
    (ranking,) = rank_options(model, processor, pictures_of(processor, images), [(prompt, options)])
    return ranking.losses


def texts(model, processor, images, prompts, max_new_tokens):
    pictures = [pictures_of(processor, shown) for shown in images]
    return [answer.text for answer in answers(model, processor, pictures, prompts, max_new_tokens)]


@pytest.fixture(scope="module")
def full():
    return load_pretrained(str(GOLDEN / "llava-tiny-s2"), vision_tower=TOWER, dtype="float32")


@pytest.fixture(scope="module")
def lora():
    return load_pretrained(
        str(GOLDEN / "llava-tiny-s2-lora"), str(GOLDEN / "vicuna-tiny"), vision_tower=TOWER, dtype="float32"
    )


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["image"])
def test_losses_and_choices_are_the_original_codes(kind, case, request):
    losses = option_losses(
        *request.getfixturevalue(kind), [open_image(GOLDEN / case["image"])], case["question"], case["options"]
    )
    assert losses == pytest.approx(case[f"option_losses_{kind}"], abs=1e-5)
    assert losses.index(min(losses)) == case[f"option_chosen_{kind}"]


def _whole_sequence_loss(model, processor, images, prompt, option):
    messages = [user_message(prompt, len(images)), {"role": "assistant", "content": option}]
    row = encode_messages(messages, processor, processor.chat_template)
    pixels = {"pixel_values": processor.image_processor(images, return_tensors="pt")["pixel_values"]} if images else {}
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row["input_ids"]]), use_cache=False, **pixels).logits[0]
    logits[:, processor.image_token_id] = -torch.inf
    return cross_entropy(logits[:-1], torch.tensor(row["labels"][1:])).item()


@pytest.mark.parametrize("template", ["vicuna_v1", "llama_2"])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_the_shared_prefix_changes_nothing(full, template, count):
    model, processor = full
    images = [open_image(GOLDEN / case["image"]) for case in CASES[:count]]
    # Beginnings shared, one option the beginning of another, one much longer, one alone on its script.
    options = ["A red bus", "A red bus on a street, seen from far away.", "no", "猫", "A red"]
    before, processor.chat_template = processor.chat_template, TEMPLATES[template]
    try:
        losses = option_losses(model, processor, images, "What is in the picture?", options)
        whole = [_whole_sequence_loss(model, processor, images, "What is in the picture?", o) for o in options]
    finally:
        processor.chat_template = before
    assert losses == pytest.approx(whole, abs=3e-6)


def test_the_image_and_the_question_are_encoded_once(full):
    model, processor = full
    shapes = []
    hooks = [
        model.model.vision_tower.register_forward_hook(lambda *_: shapes.append("tower")),
        model.lm_head.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape[:2]))),
    ]
    try:
        option_losses(model, processor, [open_image(GOLDEN / CASES[0]["image"])], "What?", ["red", "dark green", "no"])
    finally:
        for hook in hooks:
            hook.remove()
    longest = len(processor.tokenizer.tokenize("dark green")) + 1
    assert shapes == ["tower", (1, 1), (3, longest)]


def test_chatml_replies_count_up_to_their_own_end_of_turn():
    model, processor = load_pretrained(str(GOLDEN / "llava-tiny-s2"), vision_tower=TOWER, dtype="float32")
    processor.tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    model.resize_token_embeddings(len(processor.tokenizer), mean_resizing=False)
    processor.chat_template = TEMPLATES["chatml"]
    images = [open_image(GOLDEN / CASES[0]["image"])]
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert token_arguments(model, processor)["eos_token_id"] == [2, end]
    losses = option_losses(model, processor, images, "What?", ["red", "dark green"])
    # By hand: the text of the format, its ids after "assistant\n", and their mean negative log-probability.
    for option, loss in zip(["red", "dark green"], losses, strict=True):
        start = (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<image>\nWhat?<|im_end|>\n"
            "<|im_start|>assistant\n"
        )
        ids = processor(text=f"{start}{option}<|im_end|>", images=images, return_tensors="pt")
        with torch.no_grad():
            logits = model(**ids).logits[0]
        logits[:, processor.image_token_id] = -torch.inf
        row = ids["input_ids"][0]
        reply = len(row) - processor(text=start, images=images, return_tensors="pt")["input_ids"].shape[1]
        assert row[-1] == end and reply == len(processor.tokenizer.tokenize(option)) + 1
        assert loss == pytest.approx(cross_entropy(logits[-reply - 1 : -1], row[-reply:]).item(), abs=1e-5)


# As llava-hf's checkpoints have it: contents are lists of parts, and the reply takes no end-of-turn token.
PARTS_ONLY = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ part['text'] + ' ' }}{% endgeneration %}"
    "{% else %}{{ part['text'] + ' ' }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def test_a_checkpoint_with_hugging_faces_template_and_image_processor(full, monkeypatch):
    model, processor = full
    stock = CLIPImageProcessorPil(size={"shortest_edge": 168}, crop_size={"height": 168, "width": 168})
    monkeypatch.setattr(processor, "image_processor", stock)
    monkeypatch.setattr(processor, "chat_template", PARTS_ONLY)
    images = [open_image(GOLDEN / CASES[0]["image"])]
    losses = option_losses(model, processor, images, "What?", ["red", "dark green"])
    for option, loss in zip(["red", "dark green"], losses, strict=True):
        text = f"USER: <image>\nWhat? ASSISTANT: {option} "
        ids = processor(text=text, images=images, return_tensors="pt")
        with torch.no_grad():
            logits = model(**ids).logits[0]
        logits[:, processor.image_token_id] = -torch.inf
        row = ids["input_ids"][0]
        reply = (
            len(row)
            - processor(text=text[: -len(option) - 2], images=images, return_tensors="pt")["input_ids"].shape[1]
        )
        assert loss == pytest.approx(cross_entropy(logits[-reply - 1 : -1], row[-reply:]).item(), abs=1e-5)


def test_a_template_that_marks_no_reply_is_an_error(full, monkeypatch):
    model, processor = full
    unmarked = PARTS_ONLY.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    monkeypatch.setattr(processor, "chat_template", unmarked)
    with pytest.raises(InputError, match=r"marks no reply.*--template"):
        option_losses(model, processor, [], "What?", ["red", "green"])


def test_greedy_answers_are_the_original_codes_also_in_a_batch(full):
    model, processor = full
    images = [[open_image(GOLDEN / case["image"])] for case in CASES]
    prompts = [case["question"] for case in CASES]
    expected = [processor.decode(case["greedy_full"], skip_special_tokens=True).strip() for case in CASES]
    together = texts(model, processor, images, prompts, max_new_tokens=8)
    alone = [texts(model, processor, [shown], [prompt], 8)[0] for shown, prompt in zip(images, prompts, strict=True)]
    assert together == alone == expected


def test_a_batch_may_mix_questions_with_and_without_images(full):
    model, processor = full
    images = [[open_image(GOLDEN / CASES[0]["image"])], [], [open_image(GOLDEN / c["image"]) for c in CASES[1:3]]]
    prompts = ["What?", "Who wrote it, and when was it that they did so?", "Which?"]
    alone = [texts(model, processor, [shown], [prompt], 8)[0] for shown, prompt in zip(images, prompts, strict=True)]
    assert texts(model, processor, images, prompts, 8) == alone
