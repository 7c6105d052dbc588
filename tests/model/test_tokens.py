"""Token ids against the original tokenizer calls: SentencePiece on each stretch of text, as LLaVA's code makes them."""

import json
import random
import re
import shutil

import pytest
from llava_reference import VICUNA
from sentencepiece import SentencePieceProcessor
from tokenizers.processors import BertProcessing, TemplateProcessing
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

from llava_s2.errors import InputError
from llava_s2.model.processor import build_processor
from llava_s2.model.templates import TEMPLATES, with_image_start_end
from llava_s2.model.tokenizer import load_tokenizer
from llava_s2.s2 import S2VisionConfig

VERSIONS = {"v1": "vicuna_v1", "llava_llama_2": "llama_2", "plain": "plain"}
PIECES = ["<image>", "</s>", "<s>", "\n", " ", "  ", "   ", "the", "Hello", "日本", " A", "é", "😀", "\t", "1", "12"]
PIECES += ["don't", "USER:", "ASSISTANT:", "▁", "aaaa", "    \n  ", "ing", ".", "<", ">", "|", "def f(x):\n        x"]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(VICUNA)


def ids_with_image_as_minus_200(tokenizer, ids):
    image = tokenizer.convert_tokens_to_ids("<image>")
    return [-200 if token == image else token for token in ids]


def original_ids(text, *, legacy):
    """What LLaVA's calls of transformers 4.37's slow Llama tokenizer on each chunk give, by SentencePiece alone."""
    pieces = SentencePieceProcessor(model_file=str(VICUNA / "tokenizer.model"))
    special = {"<unk>": 0, "<s>": 1, "</s>": 2}
    ids = [1]
    for number, chunk in enumerate(text.split("<image>")):
        ids += [-200] if number else []
        stretches = [stretch for stretch in re.split("(<unk>|<s>|</s>)", chunk) if stretch]
        for place, stretch in enumerate(stretches):
            if stretch in special:
                ids.append(special[stretch])
            elif legacy:
                ids += pieces.encode(stretch)
            else:
                # No dummy space: behind a newline, which is one byte token that nothing merges with.
                ids += pieces.encode("\n" + "▁" * (place == 0) + stretch)[2:]
    return ids


@pytest.mark.parametrize("legacy", [True, False])
def test_any_text_has_the_original_ids(legacy, tmp_path):
    shutil.copytree(VICUNA, tmp_path / "x")
    settings = tmp_path / "x" / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"legacy": legacy}))
    tokenizer = load_tokenizer(tmp_path / "x")
    tokenizer.save_pretrained(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    choose = random.Random(0)
    for _ in range(60):
        text = "".join(choose.choices(PIECES, k=choose.randint(1, 12)))
        wanted = original_ids(text, legacy=legacy)
        for one in (tokenizer, again):
            assert ids_with_image_as_minus_200(one, one(text)["input_ids"]) == wanted, text


@pytest.mark.parametrize("legacy", [True, False])
def test_a_llama_tokenizer_that_transformers_5_saved_has_the_original_ids(legacy, tmp_path):
    """``tokenizer.json`` alone, its dummy space put by Metaspace: at every stretch's start, or at the text's alone."""
    LlamaTokenizer.from_pretrained(VICUNA, legacy=legacy).save_pretrained(tmp_path)
    assert not (tmp_path / "tokenizer.model").exists()
    tokenizer = load_tokenizer(tmp_path)
    for text in (
        "A chat. USER: <image>\nWhat? ASSISTANT: A cup.</s>",
        "<image>Hello<image> there",
        " Hi",
        "</s>  a  b",
    ):
        wanted = original_ids(text, legacy=legacy)
        assert ids_with_image_as_minus_200(tokenizer, tokenizer(text)["input_ids"]) == wanted, text


def test_added_tokens_are_what_the_tokenizers_files_say(tmp_path):
    shutil.copytree(VICUNA, tmp_path / "x")
    settings = tmp_path / "x" / "tokenizer_config.json"
    known = json.loads(settings.read_text())
    flags = {"lstrip": False, "rstrip": True, "single_word": False, "normalized": False, "special": False}
    known["added_tokens_decoder"] = {**known.get("added_tokens_decoder", {}), "32000": {"content": "<bbox>", **flags}}
    settings.write_text(json.dumps(known))
    (tmp_path / "x" / "added_tokens.json").write_text(json.dumps({"<bbox>": 32000, "<loc_1>": 32001}))
    tokenizer = load_tokenizer(tmp_path / "x")
    tokenizer.save_pretrained(tmp_path / "saved")
    for one in (tokenizer, AutoTokenizer.from_pretrained(tmp_path / "saved")):
        ids = one("at <bbox> <loc_1></s>")["input_ids"]
        assert one.decode(ids, skip_special_tokens=True).split() == ["at", "<bbox>", "<loc_1>"]
        token = one.added_tokens_decoder[32000]
        assert {name: getattr(token, name) for name in flags} == flags
        assert not one.added_tokens_decoder[32001].special
        assert one.convert_tokens_to_ids("<image>") == 32002


@pytest.mark.parametrize("saved_by_transformers", [False, True])
def test_a_tokenizer_that_appends_its_end_gives_the_beginning_alone(tmp_path, saved_by_transformers):
    shutil.copytree(VICUNA, tmp_path / "x")
    settings = tmp_path / "x" / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"add_eos_token": True}))
    if saved_by_transformers:
        tokenizer = AutoTokenizer.from_pretrained(VICUNA)
        backend = tokenizer.backend_tokenizer
        backend.post_processor = TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
        PreTrainedTokenizerFast(
            tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
        ).save_pretrained(tmp_path / "x2")
    tokenizer = load_tokenizer(tmp_path / ("x2" if saved_by_transformers else "x"))
    tokenizer.save_pretrained(tmp_path / "saved")
    for one in (tokenizer, AutoTokenizer.from_pretrained(tmp_path / "saved")):
        ids = one("Hello")["input_ids"]
        assert ids[0] == 1 and ids[-1] != 2


def test_a_tokenizer_that_cannot_leave_its_end_out_is_refused(tmp_path):
    backend = AutoTokenizer.from_pretrained(VICUNA).backend_tokenizer
    backend.post_processor = BertProcessing(("</s>", 2), ("<s>", 1))
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>").save_pretrained(tmp_path)
    with pytest.raises(InputError, match="the tokenizer ends every text with </s>"):
        load_tokenizer(tmp_path)


def test_known_tokens_keep_their_ids(tokenizer):
    pieces = SentencePieceProcessor(model_file=str(VICUNA / "tokenizer.model"))
    vocab = tokenizer.get_vocab()
    assert {token for token, i in vocab.items() if i >= 32000} == {"<image>"}
    assert all(vocab[pieces.id_to_piece(i)] == i for i in range(32000))
    assert (
        tokenizer.decode(tokenizer("Two dogs, 1 sofa.")["input_ids"], skip_special_tokens=True) == "Two dogs, 1 sofa."
    )


def test_prompts_have_the_reference_ids_and_text(golden, tokenizer):
    for case in golden["cases"]:
        assert ids_with_image_as_minus_200(tokenizer, tokenizer(case["prompt"])["input_ids"]) == case["input_ids"]
        parts = [{"type": "image"}, {"type": "text", "text": case["question"]}]
        for content in (parts, "<image>\n" + case["question"]):
            messages = [{"role": "user", "content": content}]
            prompt = tokenizer.apply_chat_template(
                messages, chat_template=TEMPLATES["vicuna_v1"], add_generation_prompt=True, tokenize=False
            )
            assert prompt == case["prompt"]


def test_templates_give_the_reference_ids_and_labels(golden, tokenizer):
    assert {record["version"] for record in golden["train"]} == set(VERSIONS)
    for record in golden["train"]:
        turns = record["conversations"]
        turns = turns if turns[0]["from"] == "human" else turns[1:]
        encoded = tokenizer.apply_chat_template(
            [{"role": "user" if turn["from"] == "human" else "assistant", "content": turn["value"]} for turn in turns],
            chat_template=TEMPLATES[VERSIONS[record["version"]]],
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        ids = [1, *ids_with_image_as_minus_200(tokenizer, encoded["input_ids"])]
        mask = [0, *encoded["assistant_masks"]]
        assert ids == record["input_ids"]
        assert [i if kept else -100 for i, kept in zip(ids, mask, strict=True)] == record["labels"]


def test_a_prompt_is_its_conversation_up_to_the_reply(tokenizer):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": [{"type": "text", "text": "Who?"}, {"type": "image"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Me."}]},
    ]
    for name, template in TEMPLATES.items():
        whole = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
        prompt = tokenizer.apply_chat_template(
            messages[:-1], chat_template=template, tokenize=False, add_generation_prompt=True
        )
        assert whole.startswith(prompt) and whole[len(prompt) :].strip().startswith("Me."), name
        assert ("Be brief." in prompt) == (name != "plain")
        assert name == "plain" or "<image>\nWho?" in prompt


def test_chatml_is_the_published_format(tokenizer):
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    messages += [{"role": "assistant", "content": "A"}]
    text = tokenizer.apply_chat_template(messages, chat_template=TEMPLATES["chatml"], tokenize=False)
    assert text == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
    )


def test_image_markers_of_mm_use_im_start_end(tokenizer):
    messages = [{"role": "user", "content": "What?\n<image>"}]
    template = with_image_start_end(TEMPLATES["vicuna_v1"])
    text = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
    assert text.endswith("USER: <im_start><image><im_end>\nWhat? ")


def test_several_images_stay_where_they_are(tokenizer):
    messages = [{"role": "user", "content": "A <image> and B <image>?"}]
    text = tokenizer.apply_chat_template(messages, chat_template=TEMPLATES["vicuna_v1"], tokenize=False)
    assert text.endswith("USER: A <image> and B <image>? ")


def test_a_template_needs_its_tokens(tokenizer):
    config = S2VisionConfig(
        backbone_config={"model_type": "clip_vision_model", "image_size": 56, "patch_size": 14}, scales=[56]
    )
    with pytest.raises(ValueError, match=r"<\|im_end\|>"):
        build_processor(tokenizer, config, [0.5] * 3, [0.5] * 3, template="chatml")
