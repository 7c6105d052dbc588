"""Int8 layers against whole-number arithmetic written out, and against the float layers they replace."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from llava_s2.s2 import S2VisionModel
from llava_s2.s2.int8 import Int8Linear, check_int8, quantize_linears

try:
    check_int8()
except ValueError as error:  # a processor without VNNI; that it is told so, test_loading.py looks at
    pytest.skip(str(error), allow_module_level=True)


def in_whole_numbers(x, weight, bias):
    """Rounds tokens and output channels to 127 steps each way (in float32, as they come), and multiplies in int64."""
    x, weight = x.float(), weight.float()
    smallest = torch.finfo(torch.float32).tiny
    x_scale = x.abs().amax(-1, keepdim=True).clamp_min(smallest) / 127
    w_scale = weight.abs().amax(1, keepdim=True).clamp_min(smallest) / 127
    x_whole, w_whole = (x / x_scale).round().long(), (weight / w_scale).round().long()
    assert x_whole.abs().max() <= 127 and w_whole.abs().max() <= 127
    product = (x_whole @ w_whole.T).double() * x_scale.double() * w_scale[:, 0].double()
    return product if bias is None else product + bias.double()


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(1, 40), min_size=0, max_size=2),
    sizes=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    bias=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    spread=st.sampled_from([1e-4, 1.0, 1e3]),
    seed=st.integers(0, 2**31),
)
def test_products_are_those_of_whole_numbers(shape, sizes, bias, dtype, spread, seed):
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(*sizes, bias=bias).to(dtype)
    x = (torch.randn(*shape, sizes[0], generator=generator) * spread).to(dtype)
    with torch.inference_mode():
        found = Int8Linear(linear)(x)
        weight = linear.weight.double()
        wanted = in_whole_numbers(x, weight, linear.bias)
        float_product = linear.double()(x.double())
    assert found.dtype == dtype and found.shape == wanted.shape
    x_step = x.double().abs().amax(-1, keepdim=True) / 127
    w_step = weight.abs().amax(1) / 127
    rounding = 2 * torch.finfo(dtype).eps * wanted.abs() + 1e-6 * x_step * sizes[0]
    assert ((found.double() - wanted).abs() <= rounding).all()
    # Half a step of every activation and of every weight is the most that rounding can cost.
    most = x_step / 2 * (weight.abs() + w_step[:, None] / 2).sum(1) + x.double().abs().sum(-1, keepdim=True) * (
        w_step / 2
    )
    assert ((found.double() - float_product).abs() <= most + rounding).all()


def test_a_token_does_not_depend_on_its_neighbours():
    linear = Int8Linear(nn.Linear(64, 64))
    x = torch.randn(5, 64)
    x[3] *= 1e4
    with torch.inference_mode():
        torch.testing.assert_close(linear(x)[:3], linear(x[:3]), rtol=0, atol=0)


def test_a_quantized_tower_gives_nearly_its_features():
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, image_size=28, patch_size=14
    )
    tower = S2VisionModel.wrap(CLIPVisionModel(config), scales=[28, 56, 84]).eval()
    pixels = torch.randn(2, 3, 84, 84)
    with torch.inference_mode():
        wanted = tower(pixels).last_hidden_state
        assert quantize_linears(tower) is tower
        found = tower(pixels).last_hidden_state
    assert not [name for name, layer in tower.named_modules() if type(layer) is nn.Linear]
    assert not torch.equal(found, wanted)
    assert (found - wanted).norm() < 0.03 * wanted.norm()


def test_it_cannot_be_saved_or_trained():
    linear = Int8Linear(nn.Linear(8, 8))
    with pytest.raises(RuntimeError, match="cannot be saved"):
        linear.state_dict()
    with pytest.raises(RuntimeError, match="no gradient"):
        linear(torch.randn(1, 8, requires_grad=True))
