"""LLaVA's layout around other language models, and with tokens of its own: into the model, and there and back."""

import json
import shutil

import pytest
import torch
from llava_reference import FULL, PROJECTOR, TOWER, VICUNA, copy_checkpoint
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from llava_s2 import load_pretrained
from llava_s2.formats.convert import convert


def byte_level_tokenizer(folder):
    """A tokenizer of Llama 3's kind: tokenizer.json alone, byte-level BPE, special tokens after the vocabulary."""
    vocab = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab, [], byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>"
    ).save_pretrained(folder)


def llava_of(kind, folder):
    """A LLaVA-format checkpoint of one scale on a random language model; also that model."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "max_position_embeddings": 2048}
    folder.mkdir()
    if kind == "mistral":
        llm = MistralForCausalLM(MistralConfig(vocab_size=32000, sliding_window=16, **sizes))
        for file in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
            shutil.copy(FULL / file, folder)
    else:
        rope = {"rope_type": "default", "rope_theta": 500000.0}
        llm = LlamaForCausalLM(LlamaConfig(vocab_size=258, rope_parameters=rope, **sizes))
        byte_level_tokenizer(folder)
    config = {key: value for key, value in llm.config.to_dict().items() if key != "rope_parameters"}
    config |= {"rope_theta": llm.config.rope_parameters["rope_theta"], "torch_dtype": "float32"}
    config |= {"model_type": f"llava_{llm.config.model_type}", "mm_vision_tower": str(TOWER), "mm_hidden_size": 32}
    config |= {"version": "v1"}  # its chat template, which nothing else tells
    config |= {"mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2, "image_aspect_ratio": "pad"}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = dict(llm.state_dict())
    for number in (0, 2):
        tensors[f"model.mm_projector.{number}.weight"] = torch.randn(32, 32) / 6
        tensors[f"model.mm_projector.{number}.bias"] = torch.randn(32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder, llm.eval()


@pytest.mark.parametrize("kind", ["mistral", "llama3"])
def test_other_language_models_in_and_there_and_back(kind, tmp_path):
    folder, llm = llava_of(kind, tmp_path / "x")
    model, processor = load_pretrained(folder)
    rows = llm.config.vocab_size
    assert model.config.text_config.model_type == llm.config.model_type
    assert model.config.image_token_id == rows
    ids = processor.tokenizer("A chat about nothing, longer than the sliding window.", return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(model(**ids).logits[..., :rows], llm(**ids).logits, atol=1e-5, rtol=0)
    convert(folder, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "back", "llava")
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == json.loads(
        (folder / "config.json").read_text()
    )
    for path in folder.iterdir():
        if path.name not in ("config.json", "chat_template.jinja"):
            assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes(), path.name


def test_markers_of_images_without_rows_of_their_own(tmp_path):
    """mm_use_im_start_end in a checkpoint whose tokenizer lacks the markers: they come before the placeholder."""
    folder = copy_checkpoint(FULL, tmp_path / "x", mm_use_im_start_end=True, mm_vision_tower=str(TOWER))
    tensors = load_file(folder / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.cat([tensors[name], torch.ones(2, 32).half()])
    save_file(tensors, folder / "model.safetensors")
    model, processor = load_pretrained(folder)
    ids = processor.tokenizer.convert_tokens_to_ids(["<im_start>", "<im_end>", "<image>"])
    assert ids == [32000, 32001, 32002]
    assert torch.equal(model.get_input_embeddings().weight[32000:32002], torch.ones(2, 32).half())
    assert torch.equal(model.lm_head.weight[:32002], tensors["lm_head.weight"])


def test_rows_of_the_markers_that_stage_1_trained(tmp_path):
    """LLaVA's stage 1 with mm_use_im_start_end leaves the two rows in mm_projector.bin, behind the base's own."""
    folder = tmp_path / "stage1"
    folder.mkdir()
    config = json.loads((FULL / "config.json").read_text()) | {"mm_use_im_start_end": True}
    (folder / "config.json").write_text(json.dumps(config | {"mm_vision_tower": str(TOWER)}))
    rows = torch.randn(2, 32).half()
    torch.save(torch.load(PROJECTOR, weights_only=True) | {"model.embed_tokens.weight": rows}, folder / PROJECTOR.name)
    model, processor = load_pretrained(folder, VICUNA)
    assert processor.tokenizer.convert_tokens_to_ids(["<im_start>", "<im_end>"]) == [32000, 32001]
    embedding = model.get_input_embeddings().weight
    assert torch.equal(embedding[32000:32002], rows)
    assert torch.equal(embedding[:32000], load_file(VICUNA / "model.safetensors")["model.embed_tokens.weight"])
