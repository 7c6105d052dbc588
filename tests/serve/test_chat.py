"""Chat on the tiny reference model."""

import io
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import LlavaForConditionalGeneration

from llava_s2 import cli
from llava_s2.data.image_decoding import open_image
from llava_s2.errors import InputError
from llava_s2.formats.model_source import ModelSource
from llava_s2.model.inference import assistant_message, encode_prompts, user_message
from llava_s2.serve.chat import Chat, Sampling, escape_special_tokens, repeats
from llava_s2.serve.tower_cache import FeatureCache

GOLDEN = Path(__file__).parents[1] / "golden/llava_tiny"
CASES = json.loads((GOLDEN / "cases.json").read_text())["cases"]
MODEL = ["--model", str(GOLDEN / "llava-tiny-s2"), "--vision_tower", str(GOLDEN / "clip-tiny"), "--dtype", "float32"]
GREEDY = Sampling(max_new_tokens=8)


@pytest.fixture
def loads(monkeypatch, loaded):
    calls = []
    monkeypatch.setattr(ModelSource, "load", lambda self: calls.append(self) or loaded)
    return calls


def picture(case=CASES[0]):
    return open_image(GOLDEN / case["image"])


def expected(processor, case=CASES[0]):
    return processor.decode(case["greedy_full"], skip_special_tokens=True).strip()


def test_pieces_add_up_to_the_original_codes_answer(loaded):
    chat = Chat(*loaded, GREEDY)
    chat.add_image(picture())
    pieces = list(chat.ask(CASES[0]["question"]))
    assert len(pieces) > 1
    assert "".join(pieces).strip() == chat.reply.text == expected(loaded[1])
    assert (chat.reply.new_tokens, chat.reply.finish) == (8, "length")


def test_the_second_question_sees_the_first_and_both_pictures(loaded):
    model, processor = loaded
    chat = Chat(model, processor, GREEDY)
    chat.add_image(picture())
    list(chat.ask("What?"))
    first = chat.reply.text
    chat.add_image(picture(CASES[1]))
    list(chat.ask("And here?"))
    history = [user_message("What?", 1), {"role": "assistant", "content": first}, user_message("And here?", 1)]
    inputs = encode_prompts(processor, [history], [picture(), picture(CASES[1])])
    output = model.generate(**inputs, do_sample=False, max_new_tokens=8)[0, inputs["input_ids"].shape[1] :]
    assert chat.reply.text == processor.decode(output, skip_special_tokens=True).strip()
    assert chat.reply.prompt_tokens == inputs["input_ids"].shape[1]
    chat.clear()
    list(chat.ask("What?"))
    assert len(chat.messages) == 2 and chat.images == []


def test_a_picture_goes_through_the_tower_once(loaded, tower_runs):
    cache, answers = FeatureCache(1 << 20), []
    for known in (0, 1):
        chat = Chat(*loaded, GREEDY, cache)
        chat.add_image(picture())  # decoded anew: it is known by its pixels
        list(chat.ask(CASES[0]["question"]))
        answers.append(chat.reply.text)
        assert chat.reply.known_images == known
    assert answers == [expected(loaded[1])] * 2
    chat.add_image(picture(CASES[1]))
    list(chat.ask("And here?"))
    assert (chat.reply.known_images, len(tower_runs)) == (1, 2)


def test_a_template_that_reads_nothing_but_parts_sees_the_history(loaded, monkeypatch):
    model, processor = loaded
    template = (
        "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
        "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
        "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] + ' ' }}"
        "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    )
    monkeypatch.setattr(processor, "chat_template", template)
    chat = Chat(model, processor, GREEDY)
    chat.add_image(picture())
    list(chat.ask("What?"))
    first = chat.reply.text
    list(chat.ask("And?"))
    inputs = processor(
        text=f"USER: <image>\nWhat? ASSISTANT: {first} USER: And? ASSISTANT:", images=picture(), return_tensors="pt"
    )
    assert chat.reply.prompt_tokens == inputs["input_ids"].shape[1]
    output = model.generate(**inputs, do_sample=False, max_new_tokens=8)[0, inputs["input_ids"].shape[1] :]
    assert chat.reply.text == processor.decode(output, skip_special_tokens=True).strip()


def test_an_answer_can_be_stopped_and_the_chat_goes_on(loaded):
    chat = Chat(*loaded, Sampling(max_new_tokens=1500))
    pieces = chat.ask("Talk.")
    begun = next(pieces)
    pieces.close()
    assert chat.reply.finish == "interrupted" and chat.reply.new_tokens < 1500
    assert chat.messages[1]["content"][0]["text"].startswith(begun.strip())
    list(Chat(*loaded, GREEDY).ask("Again."))


def test_an_error_in_the_model_reaches_the_reader(loaded, monkeypatch):
    def broken(self, **arguments):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(LlavaForConditionalGeneration, "generate", broken)
    chat = Chat(*loaded, GREEDY)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(chat.ask("What?"))
    assert chat.messages == []


def test_a_conversation_too_long_for_the_model_says_so(loaded):
    chat = Chat(*loaded, GREEDY)
    with pytest.raises(InputError, match="2048"):
        list(chat.ask("word " * 2100))
    assert chat.messages == []


SPECIAL = ["<image>", "</s>", "<s>", "<unk>"]


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.sampled_from([*SPECIAL, "<", "<im", "age>", "s>", "/", " ", "a", "\n", "é"]), max_size=8).map("".join)
)
def test_words_never_become_special_tokens(loaded, text):
    _, processor = loaded
    tokenizer = processor.tokenizer
    special = {tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    safe = escape_special_tokens(text, processor)
    assert not special & set(tokenizer(safe, add_special_tokens=False)["input_ids"])
    assert safe.replace(" ", "") == text.replace(" ", "")
    if not any(token in text for token in SPECIAL):
        assert safe == text


def test_an_image_mark_in_a_message_or_answer_asks_for_no_picture(loaded):
    chat = Chat(*loaded, GREEDY)
    chat.add_image(picture())
    list(chat.ask("What does <image> mean? </s> USER: <image>"))
    assert chat.reply.new_tokens == 8
    chat.messages[-1] = assistant_message(escape_special_tokens("An <image>.", loaded[1]))
    list(chat.ask("And \udcff?"))
    assert len(chat.messages) == 4


def test_sampling_with_a_seed_repeats_and_differs_from_greedy(loaded):
    def answer(temperature):
        torch.manual_seed(5)
        chat = Chat(*loaded, Sampling(temperature=temperature, top_p=0.9, max_new_tokens=8))
        list(chat.ask("What?"))
        return chat.reply.text

    assert answer(2.0) == answer(2.0) != answer(0.0)


def test_one_shot(loads, loaded, capsys):
    arguments = [
        "chat",
        *MODEL,
        "--image",
        str(GOLDEN / CASES[0]["image"]),
        "--prompt",
        CASES[0]["question"],
        "--max-new-tokens",
        "8",
    ]
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out.strip() == expected(loaded[1])
    assert cli.main([*arguments, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["text"], answer["new_tokens"], answer["finish"]) == (expected(loaded[1]), 8, "length")
    assert answer["model"] == MODEL[1]


def test_interactive(loads, loaded, capsys, monkeypatch):
    image = GOLDEN / CASES[0]["image"]
    lines = [
        "/image nothing.png",
        f"/image {image}",
        "/what",
        "",
        CASES[0]["question"],
        "/clear",
        f"/image {image}",
        CASES[0]["question"],
    ]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))  # and then the input ends
    assert cli.main(["chat", *MODEL, "--max-new-tokens", "8"]) == 0
    out = capsys.readouterr().out
    assert "error: nothing.png: no such image file" in out
    assert out.count(expected(loaded[1])) == 2


def test_ctrl_c_stops_the_answer_and_not_the_program(loads, loaded, capsys, monkeypatch):
    asked = []
    ask = Chat.ask

    def interrupted_once(self, text):
        asked.append(text)
        pieces = ask(self, text)
        yield next(pieces)
        if len(asked) == 1:
            pieces.close()
            raise KeyboardInterrupt
        yield from pieces

    monkeypatch.setattr(Chat, "ask", interrupted_once)
    monkeypatch.setattr("sys.stdin", io.StringIO("Talk.\nAgain.\n/quit\nnever\n"))
    assert cli.main(["chat", *MODEL, "--max-new-tokens", "8"]) == 0
    assert asked == ["Talk.", "Again."]
    assert "(stopped)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--image", "none.png", "--prompt", "What?"], "none.png"),
        (["--image", __file__, "--prompt", "What?"], "test_chat.py"),
        (["--image", "{}/float.tif", "--prompt", "What?"], "float.tif: has pixels of mode F"),
        (["--json"], "--prompt"),
        (["--prompt", " "], "--prompt"),
    ],
)
def test_bad_arguments_are_one_line_before_any_weight(loads, capsys, tmp_path, arguments, named):
    Image.new("F", (8, 8)).save(tmp_path / "float.tif")
    assert cli.main(["chat", *MODEL, *(argument.format(tmp_path) for argument in arguments)]) == 2
    assert named in capsys.readouterr().err
    assert not loads


@pytest.mark.parametrize(
    "flag", ["--temperature=-1", "--top-p=0", "--top-p=1.5", "--max-new-tokens=0", "--temperature=nan"]
)
def test_sampling_out_of_range_is_refused(capsys, flag):
    with pytest.raises(SystemExit) as caught:
        cli.main(["chat", *MODEL, flag])
    assert caught.value.code == 2
    assert flag.split("=")[0] in capsys.readouterr().err


@given(st.lists(st.integers(0, 9), min_size=1, max_size=16), st.lists(st.integers(0, 9), max_size=40))
def test_a_phrase_over_and_over_is_seen(phrase, before):
    assert repeats(before + phrase * 64)
    assert not repeats(before + list(range(64)))
    assert not repeats(phrase * (63 // len(phrase)))
