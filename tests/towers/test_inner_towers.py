"""Towers inside whole VLMs and two-tower models, by name: the features of the stock vision model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AltCLIPConfig, AutoConfig, AutoModel, VisionTextDualEncoderConfig
from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionTransformer

from llava_s2.errors import InputError
from llava_s2.model.assemble import load_image_processor
from llava_s2.model.embedded import resolve_vision_tower
from llava_s2.s2 import S2VisionModel
from llava_s2.s2.backbones import model_class
from llava_s2.towers.load_tower import load_image_statistics, load_vision_backbone, load_vision_config, tower_config

VIT = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 7,
}  # fmt: skip
TEXT = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 50,
}  # fmt: skip
# name -> model type, its vision config, where its tower's tensors stand in the files, prefix tokens
MODELS: dict[str, tuple[str, dict[str, Any], str, int]] = {
    "InternVL": ("internvl", VIT | {"image_size": [28, 28], "patch_size": [7, 7]}, "model.vision_tower.", 1),
    "LLaVA-OneVision": ("llava_onevision", VIT | {"model_type": "siglip_vision_model"}, "model.vision_tower.", 0),
    "PaliGemma": ("paligemma", VIT | {"model_type": "siglip_vision_model"}, "vision_tower.vision_model.", 0),
    "Gemma 3": ("gemma3", VIT | {"model_type": "siglip_vision_model"}, "model.vision_tower.vision_model.", 0),
    "SmolVLM": ("smolvlm", VIT, "model.vision_model.", 0),
    "Idefics3": ("idefics3", VIT, "model.vision_model.", 0),
    "BLIP-2": ("blip-2", VIT, "vision_model.", 1),
    "MetaCLIP 2": ("metaclip_2", VIT, "vision_model.", 1),
    "AIMv2": ("aimv2", VIT | {"use_head": True}, "vision_model.", 0),
    "SigLIP 2": ("siglip", VIT, "vision_model.", 0),
    "SigLIP 2 NaFlex": ("siglip2", {**VIT, "num_patches": 16}, "vision_model.", 0),
}


def patches(images: Tensor, patch: int) -> Tensor:
    """NaFlex's input: patches (n, N, patch * patch * 3), a patch's pixels row by row, their channels together."""
    cut = images.unfold(2, patch, patch).unfold(3, patch, patch)
    return cut.permute(0, 2, 3, 4, 5, 1).flatten(1, 2).flatten(2)


def stock_features(stock: Any, tile: Tensor, prefix: int) -> Tensor:
    if "naflex" in type(stock).__name__.lower() or stock.config.model_type == "siglip2_vision_model":
        ones = torch.ones(len(tile), 16, dtype=torch.long)
        shapes = torch.full((len(tile), 2), 4)
        inputs: dict[str, Any] = {
            "pixel_values": patches(tile, 7),
            "pixel_attention_mask": ones,
            "spatial_shapes": shapes,
        }
    else:
        inputs = {"pixel_values": tile}
    states = stock(**inputs, output_hidden_states=True).hidden_states
    return states[-2][:, prefix:].transpose(1, 2).unflatten(2, (4, 4))


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_the_tower_inside_is_found_and_gives_the_stock_features(name: str, tmp_path: Path) -> None:
    kind, vision, prefix, skipped = MODELS[name]
    config = AutoConfig.for_model(kind, vision_config=vision)
    torch.manual_seed(0)
    stock = model_class(config.vision_config)._from_config(config.vision_config).eval()
    for parameter in stock.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    config.save_pretrained(tmp_path)
    beside = {"model.language_model.embed_tokens.weight": torch.zeros(2, 2)}
    save_file(
        {prefix + key: value for key, value in stock.state_dict().items()} | beside, tmp_path / "model.safetensors"
    )
    statistics = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "image_processor_type": "Whatever"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(statistics))

    assert tower_config(tmp_path, [28, 56]).num_image_tokens == 16
    assert load_image_statistics(tmp_path) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    backbone = load_vision_backbone(tmp_path, load_vision_config(tmp_path), torch.float32).eval()
    tower = S2VisionModel.wrap(backbone, [28, 56])
    x = torch.randn(2, 3, 56, 56)
    small = stock_features(stock, F.interpolate(x, size=28, mode="bicubic"), skipped)
    rows = [
        torch.cat([stock_features(stock, x[:, :, top : top + 28, left : left + 28], skipped) for left in (0, 28)], 3)
        for top in (0, 28)
    ]
    large = F.avg_pool2d(torch.cat(rows, 2), 2)
    expected = torch.cat([small, large], 1).flatten(2).transpose(1, 2)
    torch.testing.assert_close(tower(x).last_hidden_state, expected, rtol=1e-4, atol=1e-4)
    wrapped = S2VisionModel.wrap(stock, [28, 56])  # the loaded model itself
    torch.testing.assert_close(wrapped(x).last_hidden_state, expected, rtol=1e-4, atol=1e-4)
    wrapped.save_pretrained(tmp_path / "tower")
    again = AutoModel.from_pretrained(tmp_path / "tower")
    torch.testing.assert_close(again(x).last_hidden_state, expected, rtol=1e-4, atol=1e-4)


def test_a_tower_of_images_of_any_size_says_which_name_works(tmp_path: Path) -> None:
    AutoConfig.for_model("qwen2_5_vl").save_pretrained(tmp_path)
    with pytest.raises(InputError, match="siglip2-so400m-patch14-384"):
        tower_config(tmp_path, [336, 672])


@pytest.mark.parametrize(("ratio", "side"), [("pad", 336), ("keep", 448), ("dynamic", 448)])
def test_prepared_images_are_of_the_size_that_the_tower_takes(ratio: str, side: int) -> None:
    process = load_image_processor("embedded", [112, 224, 336], ratio)
    pixels = process(Image.new("RGB", (30, 90)), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, side, side)
    assert tower_config(resolve_vision_tower("embedded"), [112, 224, 336], -1, ratio).image_size == side


def test_weights_without_the_tower_are_refused(tmp_path: Path) -> None:
    vision = VIT | {"model_type": "siglip_vision_model"}
    AutoConfig.for_model(
        "paligemma", vision_config=vision, text_config={"model_type": "gemma", **TEXT}
    ).save_pretrained(tmp_path)
    save_file({"language_model.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"the weights lack embeddings\.patch_embedding\.bias"):
        load_vision_backbone(tmp_path, load_vision_config(tmp_path), torch.float32)


# Whose checkpoints have other names for the tower's tensors than the model that transformers makes of them.
RENAMED = {
    "AltCLIP": AltCLIPConfig(vision_config=VIT, text_config=TEXT),
    "a ViT and a BERT": VisionTextDualEncoderConfig(
        vision_config=VIT | {"model_type": "vit"}, text_config=TEXT | {"model_type": "bert"}
    ),
}


@pytest.mark.parametrize("name", RENAMED)
@torch.no_grad()
def test_a_tower_under_other_names_is_found(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = AutoModel.from_config(RENAMED[name]).eval()
    whole.save_pretrained(tmp_path)
    backbone = load_vision_backbone(tmp_path, load_vision_config(tmp_path), torch.float32)
    assert not backbone.state_dict().keys() & load_file(tmp_path / "model.safetensors").keys()
    x = torch.randn(2, 3, 28, 28)
    expected = whole.vision_model(x, output_hidden_states=True).hidden_states[-2][:, 1:]
    found = S2VisionModel.wrap(backbone.eval(), [28])(x).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_idefics_2_is_a_siglip(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model("idefics2", vision_config=VIT)
    stock = Idefics2VisionTransformer(config.vision_config).eval()
    config.save_pretrained(tmp_path)
    tensors = {f"model.vision_model.{key}": value for key, value in stock.state_dict().items()}
    save_file(tensors, tmp_path / "model.safetensors")
    backbone = load_vision_backbone(tmp_path, load_vision_config(tmp_path), torch.float32)
    x = torch.randn(2, 3, 28, 28)
    whole = torch.ones(2, 4, 4, dtype=torch.bool)
    expected = stock(x, patch_attention_mask=whole, output_hidden_states=True).hidden_states[-2]
    found = S2VisionModel.wrap(backbone.eval(), [28])(x).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_backbone_that_packs_images_into_one_sequence_is_refused(tmp_path: Path) -> None:
    """Which a Pixtral does: it takes one tile as others do, and makes one long tile of several."""
    AutoConfig.for_model("pixtral", image_size=64, hidden_size=64, num_attention_heads=2).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="'pixtral' backbone makes one sequence of several images"):
        tower_config(tmp_path, [64, 128])
