"""Towers made faster: the same answers (packed), answers to a stated error (int8)."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, ConvNextConfig, ConvNextModel, Dinov2Config, Dinov2Model

from llava_s2.s2 import S2VisionModel
from llava_s2.s2.prepare import Int8Linear, prepare, quantize_tower

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


@pytest.mark.parametrize("family", ["clip", "dinov2", "convnext"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_is_near(family: str, dtype: torch.dtype) -> None:
    tower = towers()[family]
    with torch.no_grad():
        expected = tower(images(tower)).last_hidden_state
        features = quantize_tower(tower.to(dtype))(images(tower)).last_hidden_state
    assert features.dtype == dtype
    assert 0 < (features.float() - expected).norm() / expected.norm() < 0.03


def test_int8_products_are_those_of_the_rounded_numbers() -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(96, 40), torch.randn(3, 7, 96)
    x[0, 0] *= 1e4  # a token's outlier must not round the others away
    x[1, 1] = 0
    weight = linear.weight.detach().double()
    step = weight.abs().amax(1, keepdim=True) / 127
    rounded_weight = (weight / step).round() * step
    step = (x.abs().amax(-1, keepdim=True) / 127).double().clamp(min=1e-30)
    rounded = torch.floor(x.double() / step + 0.5) * step
    expected = rounded @ rounded_weight.T + linear.bias.detach().double()
    with torch.no_grad():
        found = Int8Linear(linear)(x)
    assert found.shape == (3, 7, 40)
    error = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert error.max() < 2e-3  # a number midway between two steps may be rounded to either
    torch.testing.assert_close(found[1, 1], linear.bias.detach())


@pytest.mark.parametrize("ready", [prepare, quantize_tower])
def test_a_tower_that_learns_is_refused(ready) -> None:
    tower = towers()["clip"].train()
    with pytest.raises(ValueError, match="eval"):
        ready(tower)


def test_what_would_be_lost_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be saved"):
        quantize_tower(towers()["clip"]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="float32"):
        prepare(towers()["clip"]).to(torch.bfloat16)
