"""A LLaVA around a language model of any family has that model's own logits, or the model is refused."""

import json
import shutil
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlavaForConditionalGeneration

from llava_s2.errors import InputError
from llava_s2.formats.create import create_native
from llava_s2.model.assemble import assemble

GOLDEN = Path(__file__).parents[1] / "golden" / "llava_tiny"
SIZES = {
    "vocab_size": 32000,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
    "head_dim": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
KEPT = [
    ("granite", {"logits_scaling": 8.0, "embedding_multiplier": 12.0, "attention_multiplier": 0.015}),
    ("granite", {"logits_scaling": 3.3, "tie_word_embeddings": True}),
    ("cwm", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),
    ("cohere", {"logit_scale": 0.0625}),
    ("gemma3_text", {}),
    ("gpt2", {}),
    ("gpt_neox", {}),
    ("opt", {"word_embed_proj_dim": 32, "ffn_dim": 48}),
    ("falcon", {}),
    ("bloom", {}),
    ("mpt", {}),
]
REFUSED = [
    ("gemma2", {"final_logit_softcapping": 30.0}, "final_logit_softcapping 30"),
    ("phi", {}, "has a bias"),
    ("mamba", {}, "recurrent state"),
    ("minicpm3", {"num_key_value_heads": 2}, "its config has no entry for that"),
    ("minimax", {"num_local_experts": 2}, "cache of its own"),
    ("opt", {"word_embed_proj_dim": 16, "ffn_dim": 48}, "are 16 wide and its hidden states 32"),
    ("openai-gpt", {}, "keeps no cache of keys and values"),
]


def save(folder, family, settings):
    config = AutoConfig.for_model(family)
    for name, value in {**SIZES, **settings}.items():
        if hasattr(config, name):
            with suppress(AttributeError):  # some configs compute head_dim
                setattr(config, name, value)
    if family != "mamba" and getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: SIZES["num_hidden_layers"]]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(GOLDEN / "vicuna-tiny").save_pretrained(folder)
    return model


@pytest.mark.parametrize(("family", "settings"), KEPT)
def test_logits_are_the_language_models_own(tmp_path, family, settings):
    own = save(tmp_path / "llm", family, settings)
    llava, _ = assemble(tmp_path / "llm", GOLDEN / "clip-tiny", [56, 112])
    llava.save_pretrained(tmp_path / "llava")
    again = LlavaForConditionalGeneration.from_pretrained(tmp_path / "llava").eval()
    ids = torch.tensor([[1, 5, 99, 1234, 777, 31999]])
    with torch.no_grad():
        expected = own(input_ids=ids).logits
        for model in (llava, again):
            found = model(input_ids=ids).logits[..., : expected.shape[-1]]
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(("family", "settings", "message"), REFUSED)
def test_what_llava_would_lose_is_refused_before_weights_are_read(tmp_path, family, settings, message):
    save(tmp_path / "llm", family, settings)
    (tmp_path / "llm" / "model.safetensors").unlink()
    with pytest.raises(InputError, match=message):
        assemble(tmp_path / "llm", GOLDEN / "clip-tiny", [56, 112])


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    save(folder, "llama", {"num_hidden_layers": 2})
    return folder


def change_config(folder, **settings):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def without(*names):
    def change(folder):
        tensors = load_file(folder / "model.safetensors")
        kept = {name: tensor for name, tensor in tensors.items() if name not in names}
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: change_config(folder, num_attention_heads="two"), "num_attention_heads"),
        (lambda folder: change_config(folder, hidden_size=33), "not a multiple of the number of attention heads"),
        (lambda folder: change_config(folder, num_hidden_layers=3), "the weights lack model.layers.2"),
        (without("model.layers.1.mlp.up_proj.weight"), "the weights lack model.layers.1.mlp.up_proj.weight"),
        (without("lm_head.weight"), "the weights lack lm_head.weight"),
        (lambda folder: change_config(folder, quantization_config={"quant_method": "gptq", "bits": 4}), "quantized"),
        (lambda folder: change_config(folder, model_type="mistral3"), "a mistral3 is not a language model alone"),
        (
            lambda folder: change_config(folder, model_type="zebra", auto_map={"AutoConfig": "configuration.Zebra"}),
            "no language model .*custom code",
        ),
    ],
)
def test_a_folder_that_holds_something_else_is_refused(tmp_path, llama, change, message):
    shutil.copytree(llama, tmp_path / "llm")
    change(tmp_path / "llm")
    for make in (assemble, partial(create_native, tmp_path / "native")):
        with pytest.raises(InputError, match=message) as caught:
            make(tmp_path / "llm", GOLDEN / "clip-tiny", [56, 112])
        assert "\n" not in str(caught.value)
