"""Tiles of one colour: run once, equal features, forgotten when weights change."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from llava_s2.s2 import S2VisionModel

SIDE = 28


def tower(**options: object) -> S2VisionModel:
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, image_size=SIDE, patch_size=7
    )
    return S2VisionModel.wrap(CLIPVisionModel(config).eval(), [SIDE, 2 * SIDE, 3 * SIDE], **options)


def tiles_run(model: S2VisionModel, images: Tensor) -> tuple[Tensor, int]:
    """Features, and how many tiles the backbone was given for them."""
    count = 0

    def add(module: nn.Module, args: tuple, kwargs: dict) -> None:
        nonlocal count
        count += len(args[0])

    handle = model.backbone.register_forward_pre_hook(add, with_kwargs=True)
    features = model(images).last_hidden_state
    handle.remove()
    return features, count


def padded(colour: float = 0.0123) -> Tensor:
    """Two pictures whose upper third, and more, is of one colour."""
    torch.manual_seed(1)
    images = torch.randn(2, 3, 3 * SIDE, 3 * SIDE)
    images[:, :, : SIDE + 4] = torch.tensor([colour, -colour, 0.4])[:, None, None]
    return images


@pytest.mark.parametrize("a_call", [None, 1, 5])
@torch.no_grad()
def test_features_are_equal_and_each_colour_is_run_once(a_call: int | None) -> None:
    plain, model = tower(reuse_flat_tiles=False), tower(max_tiles_per_call=a_call)
    expected, all_tiles = tiles_run(plain, padded())
    features, first = tiles_run(model, padded())
    assert all_tiles == 28
    assert first == 28 - 6 + 1  # the upper row of the last scale, in both pictures
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-6)
    features, again = tiles_run(model, padded())
    assert again == 22
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-6)
    # One 8-bit step further is another colour.
    other = padded(0.0123 + 1 / 255)
    features, more = tiles_run(model, other)
    assert more == 23
    torch.testing.assert_close(features, plain(other).last_hidden_state, rtol=0, atol=1e-6)


@torch.no_grad()
def test_a_picture_of_one_colour_and_one_pixel() -> None:
    model, plain = tower(), tower(reuse_flat_tiles=False)
    images = torch.full((1, 3, 3 * SIDE, 3 * SIDE), 1.7)
    features, count = tiles_run(model, images)
    assert count == 1  # bicubic resizes of a constant are the same colour
    torch.testing.assert_close(features, plain(images).last_hidden_state, rtol=0, atol=1e-5)
    images[0, 1, 5, 5] += 1 / 255  # not padding any more: the pixel is seen by the tile that holds it
    features, count = tiles_run(model, images)
    assert count >= 1
    torch.testing.assert_close(features, plain(images).last_hidden_state, rtol=0, atol=1e-5)


@torch.no_grad()
def _step(model: S2VisionModel) -> None:
    for weight in model.parameters():
        weight.mul_(1.01)


@torch.no_grad()
def _past_the_counter(model: S2VisionModel) -> None:
    next(p for n, p in model.named_parameters() if n.endswith("fc1.weight")).data *= 1.5


def _load(model: S2VisionModel) -> None:
    model.load_state_dict({name: 1.1 * value for name, value in model.state_dict().items()})


def _half(model: S2VisionModel) -> None:
    model.to(torch.bfloat16)


def _adapter(model: S2VisionModel) -> None:
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj", "fc1"], init_lora_weights=False))
    adapted.merge_adapter()
    adapted.eval()


@pytest.mark.parametrize("change", [_step, _past_the_counter, _load, _half, _adapter])
def test_changed_weights_are_noticed(change) -> None:
    model = tower()
    with torch.no_grad():
        before = model(padded()).last_hidden_state
    change(model)
    with torch.no_grad():
        features = model(padded()).last_hidden_state
        model.config.reuse_flat_tiles = False
        expected = model(padded()).last_hidden_state
    tolerance = 0.05 if features.dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(features, expected, rtol=0, atol=tolerance)
    assert (features.float() - before).abs().max() > 1e-3


def test_training_and_gradients_run_every_tile() -> None:
    model = tower()
    with torch.no_grad():
        assert tiles_run(model, padded())[1] == 23
        assert tiles_run(model.train(), padded())[1] == 28
    features, count = tiles_run(model.eval(), padded())
    assert count == 28
    features.sum().backward()
    assert next(model.backbone.parameters()).grad is not None


@torch.no_grad()
def test_autocast_has_its_own_features() -> None:
    model = tower()
    whole = model(padded()).last_hidden_state
    with torch.autocast("cpu", torch.bfloat16):
        half = model(padded()).last_hidden_state
        model.config.reuse_flat_tiles = False
        torch.testing.assert_close(half, model(padded()).last_hidden_state, rtol=0, atol=0.05)
    assert whole.dtype == torch.float32
    torch.testing.assert_close(half.float(), whole, rtol=0, atol=0.1)


@torch.no_grad()
def test_the_latest_colours_are_kept_and_no_more() -> None:
    model = tower()
    colours = [0.1 * number for number in range(12)]
    for colour in colours:
        tiles_run(model, padded(colour))
    assert [tiles_run(model, padded(colour))[1] for colour in colours[-8:]] == [22] * 8
    assert tiles_run(model, padded(colours[0]))[1] == 23
