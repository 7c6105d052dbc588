"""The embedded language model, as its GGUF file holds it and where nothing can be written."""

import json

import gguf
import pytest
import torch
from safetensors import safe_open

from llava_s2.model import embedded


@pytest.fixture
def package_file(tmp_path, monkeypatch):
    """The package's GGUF file, which is named where the hub's cache cannot be written."""
    (tmp_path / "file").touch()
    monkeypatch.setattr(embedded, "HF_HOME", str(tmp_path / "file"))
    return embedded.language_model()


def test_it_is_read_from_the_package_where_nothing_can_be_written(package_file):
    assert package_file.suffix == ".gguf"
    assert package_file.is_file()


def test_the_cache_holds_what_gguf_reads(package_file, monkeypatch):
    monkeypatch.undo()
    folder = embedded.language_model()
    reader = gguf.GGUFReader(package_file)
    stored = {tensor.name: tensor for tensor in reader.tensors}
    names = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.layers.29.mlp.down_proj.weight": "blk.29.ffn_down.weight",
        "model.layers.0.input_layernorm.weight": "blk.0.attn_norm.weight",
    }
    with safe_open(folder / "model.safetensors", "pt") as file:
        for ours, theirs in names.items():
            tensor = stored[theirs]
            wanted = torch.tensor(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
            assert torch.equal(file.get_tensor(ours), wanted), ours
    tokens = reader.fields["tokenizer.ggml.tokens"]
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    for number in range(0, 49000, 7000):
        assert vocabulary[bytes(tokens.parts[tokens.data[number]]).decode()] == number
