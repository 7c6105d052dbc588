"""Which chat template a checkpoint in LLaVA's format gets: told by its content or asked for, never assumed."""

import json

import pytest
import torch
from llava_reference import FULL, LORA, TOWER, VICUNA, change_config, copy_checkpoint
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, MistralConfig, MistralForCausalLM

from llava_s2 import load_pretrained
from llava_s2.cli import main
from llava_s2.errors import InputError
from llava_s2.model.templates import TEMPLATES

MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
)


def on_mistral(folder, chat_template):
    """The reference's projector and tokenizer on a small Mistral, as LLaVA saves it."""
    copy_checkpoint(FULL, folder, model_type="llava_mistral", architectures=["LlavaMistralForCausalLM"])
    language = MistralConfig.from_dict(json.loads((folder / "config.json").read_text()))
    torch.manual_seed(0)
    state = MistralForCausalLM(language).half().state_dict()
    projector = {name: t for name, t in load_file(folder / "model.safetensors").items() if "mm_projector" in name}
    save_file(state | projector, folder / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    if chat_template is not None:
        settings["chat_template"] = chat_template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def said(processor):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
    return processor.tokenizer.apply_chat_template(messages, chat_template=processor.chat_template, tokenize=False)


def test_a_mistral_speaks_its_tokenizers_own_template(tmp_path, capsys):
    folder = on_mistral(tmp_path / "x", MISTRAL)
    model, processor = load_pretrained(folder, vision_tower=TOWER)
    assert AutoConfig.for_model("mistral").model_type == model.config.text_config.model_type
    assert said(processor) == "<s>[INST] Hi [/INST] Yes</s>"
    main(["inspect", str(folder), "--vision_tower", str(TOWER), "--json"])
    assert json.loads(capsys.readouterr().out)["template"] == "own"


def test_one_that_does_not_tell_is_refused_until_it_is_asked_for(tmp_path, capsys):
    folder = on_mistral(tmp_path / "x", None)
    with pytest.raises(InputError, match="--template: vicuna_v1, llama_2"):
        load_pretrained(folder, vision_tower=TOWER)
    assert main(["inspect", str(folder), "--vision_tower", str(TOWER), "--json"]) == 1
    assert "--template" in json.loads(capsys.readouterr().out)["problems"][0]
    _, processor = load_pretrained(folder, vision_tower=TOWER, template="llama_2")
    assert processor.chat_template == TEMPLATES["llama_2"]
    # Written in the native format the template is kept; back in LLaVA's, its name is.
    convert = ["convert", str(folder), str(tmp_path / "ours"), "--vision_tower", str(TOWER)]
    assert main(convert) == 2
    assert main([*convert, "--template", "llama_2"]) == 0
    assert load_pretrained(tmp_path / "ours")[1].chat_template == TEMPLATES["llama_2"]
    assert main(["convert", str(tmp_path / "ours"), str(tmp_path / "back"), "--to", "llava"]) == 0
    assert load_pretrained(tmp_path / "back", vision_tower=TOWER)[1].chat_template == TEMPLATES["llama_2"]


@pytest.mark.parametrize(
    ("change", "template"),
    [
        ({}, "vicuna_v1"),
        ({"_name_or_path": "meta-llama/Llama-2-13b-chat-hf"}, "llama_2"),
        ({"version": "llava_llama_2"}, "llama_2"),
        ({"_name_or_path": "somewhere/else"}, "vicuna_v1"),  # the vocabulary of Llama 1 and 2, and no other sign
    ],
)
def test_a_llama_of_the_first_two_generations(change, template, tmp_path):
    folder = copy_checkpoint(FULL, tmp_path / "x", **change)
    _, processor = load_pretrained(folder, vision_tower=TOWER)
    assert processor.chat_template == TEMPLATES[template]


def test_a_llama_of_another_vocabulary_is_not_taken_for_vicuna(tmp_path):
    folder = copy_checkpoint(FULL, tmp_path / "x", _name_or_path="llava-v1.5-llama-3", vocab_size=128256)
    with pytest.raises(InputError, match="--template"):
        load_pretrained(folder, vision_tower=TOWER)


def test_a_loras_template_is_its_bases(tmp_path):
    folder = copy_checkpoint(LORA, tmp_path / "lora", _name_or_path=None)
    base = copy_checkpoint(VICUNA, tmp_path / "base")
    settings = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": MISTRAL}))
    change_config(base, _name_or_path=None)
    _, processor = load_pretrained(folder, base, vision_tower=TOWER)
    assert said(processor) == "<s>[INST] Hi [/INST] Yes</s>"
