"""Towers with packed weights: faster, with the same answers."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, ConvNextConfig, ConvNextModel, Dinov2Config, Dinov2Model

from llava_s2.s2 import S2VisionModel
from llava_s2.s2.prepare import prepare

VIT = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 56, "patch_size": 14}


def towers() -> dict[str, S2VisionModel]:
    torch.manual_seed(0)
    clip = CLIPVisionModel(CLIPVisionConfig(**VIT, intermediate_size=128, initializer_factor=3.0))
    dino = Dinov2Model(Dinov2Config(**VIT, mlp_ratio=2, initializer_range=0.1))
    conv = ConvNextModel(ConvNextConfig(depths=[1, 1, 1, 1], hidden_sizes=[16, 16, 32, 64], image_size=64))
    return {
        "clip": S2VisionModel.wrap(clip.eval(), [56, 112, 168]),
        "dinov2": S2VisionModel.wrap(dino.eval(), [56, 112], feature_layer=-1),
        "convnext": S2VisionModel.wrap(conv.eval(), [64, 128], feature_layer=-1),
    }


def images(tower: S2VisionModel) -> Tensor:
    return torch.randn(2, 3, tower.config.image_size, tower.config.image_size, generator=torch.manual_seed(1))


@pytest.mark.parametrize("family", ["clip", "dinov2", "convnext"])
def test_packed_weights_change_nothing(family: str, tmp_path: Path) -> None:
    tower = towers()[family]
    with torch.no_grad():
        expected = tower(images(tower)).last_hidden_state
        packed = prepare(copy.deepcopy(tower))
        assert not any(type(module) is nn.Linear for module in packed.modules())
        torch.testing.assert_close(packed(images(tower)).last_hidden_state, expected, rtol=0, atol=2e-5)
    packed.save_pretrained(tmp_path)
    saved = S2VisionModel.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(saved[name], value) for name, value in tower.state_dict().items())


def test_a_tower_that_learns_is_refused() -> None:
    with pytest.raises(ValueError, match="eval"):
        prepare(towers()["clip"].train())


def test_what_would_be_lost_is_refused() -> None:
    with pytest.raises(ValueError, match="float32"):
        prepare(towers()["clip"]).to(torch.bfloat16)
