"""Tiles on a picture's own aspect ratio: which tiles, the same tokens out, and through a whole LLaVA."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from llava_s2.s2 import S2VisionConfig, S2VisionModel
from llava_s2.s2.aspect import content_boxes, dynamic_grids, kept_grids

BASE, PATCH = 24, 6
GRID = BASE // PATCH


def tower(keep_aspect: Any = True) -> S2VisionModel:
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=BASE,
        patch_size=PATCH,
    )
    backbone = CLIPVisionModel(config).eval()
    return S2VisionModel.wrap(backbone, [BASE, 2 * BASE, 3 * BASE], feature_layer=-1, keep_aspect=keep_aspect)


def padded(picture: Tensor, side: int) -> Tensor:
    """A picture (3, h, w) in the middle of a square of the mean colour, as LLaVA pads it."""
    square = torch.full((3, side, side), 0.0021)
    top, left = (side - picture.shape[1]) // 2, (side - picture.shape[2]) // 2
    square[:, top : top + picture.shape[1], left : left + picture.shape[2]] = picture
    return square


@given(
    height=st.integers(1, 400), width=st.integers(1, 400), scales=st.sampled_from([[1], [1, 2, 3], [1, 3], [1, 2, 4]])
)
def test_grids_are_the_nearest_in_shape_and_every_scale_adds_tiles(height: int, width: int, scales: list[int]) -> None:
    before = 0
    for most, (rows, columns) in zip(scales, kept_grids(height, width, scales), strict=True):
        assert before < rows * columns <= most**2
        distance = abs(math.log(columns / rows * height / width))
        for r in range(1, most + 2):
            for c in range(1, most + 2):
                if before < r * c <= most**2:
                    other = abs(math.log(c / r * height / width))
                    assert other > distance - 1e-5
                    assert other > distance + 1e-5 or r * c <= rows * columns
        before = rows * columns


@pytest.mark.parametrize("ratio", [1 + step / 20 for step in range(381)])  # 1:1 to 20:1
def test_no_two_scales_are_alike_at_any_ratio(ratio: float) -> None:
    for grids in (
        kept_grids(1000, round(1000 * ratio), [1, 2, 3]),
        dynamic_grids(1000, round(1000 * ratio), [1, 2, 3]),
    ):
        tiles = [rows * columns for rows, columns in grids]
        assert tiles == sorted(set(tiles))


@pytest.mark.parametrize(
    ("size", "grids"),
    [
        ((1, 1), [(1, 1), (2, 2), (3, 3)]),
        ((3, 4), [(1, 1), (2, 2), (2, 3)]),
        ((1, 2), [(1, 1), (1, 2), (2, 4)]),
        ((1, 3), [(1, 1), (1, 3), (1, 4)]),
        ((20, 1), [(1, 1), (3, 1), (4, 1)]),
    ],
)
def test_grids_of_usual_images(size: tuple[int, int], grids: list[tuple[int, int]]) -> None:
    assert kept_grids(*size, [1, 2, 3]) == grids


@pytest.mark.parametrize(
    ("size", "largest", "tiles"),
    [((1, 1), (3, 3), 14), ((1, 3), (2, 6), 17), ((3, 1), (6, 2), 17), ((3, 4), (3, 4), 17), ((1, 20), (1, 12), 17)],
)
def test_grids_of_dynamic_s2(size: tuple[int, int], largest: tuple[int, int], tiles: int) -> None:
    grids = dynamic_grids(*size, [1, 2, 3])
    assert grids == [(1, 1), (2, 2), largest]
    assert sum(rows * columns for rows, columns in grids) == tiles


@pytest.mark.parametrize("size", [(96, 96), (96, 40), (33, 96), (96, 1)])
def test_the_picture_is_found_in_its_padding(size: tuple[int, int]) -> None:
    picture = torch.rand(3, *size) + 0.1
    ((top, bottom, left, right),) = content_boxes(padded(picture, 96)[None])
    assert (bottom - top, right - left) == size
    assert torch.equal(padded(picture, 96)[:, top:bottom, left:right], picture)


def test_what_only_looks_like_padding() -> None:
    white = torch.rand(1, 3, 64, 64)
    white[:, :, :20] = white[:, :, 44:] = 2.1  # a picture with a white margin
    blank = torch.full((1, 3, 64, 64), 0.001)
    assert content_boxes(torch.cat([white, blank])) == [(0, 64, 0, 64)] * 2


def by_tiles(model: S2VisionModel, content: Tensor, grids: list[tuple[int, int]]) -> Tensor:
    """Features (1, N, 3 D) of an image (3, h, w): a loop over scales and tiles, whole maps, area interpolation.

    With square grids for the smaller scales and the image's own for the largest this is what NVILA describes.
    """
    maps = []
    for rows, columns in grids:
        resized = F.interpolate(content[None], size=(rows * BASE, columns * BASE), mode="bicubic")
        whole = torch.zeros(1, 16, rows * GRID, columns * GRID)
        for row in range(rows):
            for column in range(columns):
                y, x = row * BASE, column * BASE
                tokens = model.backbone(resized[:, :, y : y + BASE, x : x + BASE]).last_hidden_state[:, 1:]
                y, x = row * GRID, column * GRID
                whole[:, :, y : y + GRID, x : x + GRID] = tokens.transpose(1, 2).unflatten(2, (GRID, GRID))
        maps.append(F.interpolate(whole, size=(GRID, GRID), mode="area"))
    return torch.cat(maps, dim=1).flatten(2).transpose(1, 2)


@pytest.mark.parametrize("tiles_per_call", [None, 1, 5])
@pytest.mark.parametrize(
    ("mode", "size", "grids"),
    [
        (True, (48, 96), [(1, 1), (1, 2), (2, 4)]),
        (True, (96, 64), [(1, 1), (2, 1), (3, 2)]),
        ("dynamic", (32, 96), [(1, 1), (2, 2), (2, 6)]),
        ("dynamic", (96, 74), [(1, 1), (2, 2), (4, 3)]),
    ],
)
@torch.no_grad()
def test_features_are_those_of_the_tiles(mode: Any, size: Any, grids: Any, tiles_per_call: int | None) -> None:
    model, image = tower(mode), torch.randn(3, *size) + 0.5
    model.config.max_tiles_per_call = tiles_per_call
    assert model.config.image_size == 4 * BASE == 96
    other = torch.randn(3, 96, 96)  # images of several shapes share the calls
    calls: list[int] = []
    handle = model.backbone.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    features = model(torch.stack([other, padded(image, 96)])).last_hidden_state
    handle.remove()
    assert features.shape == (2, model.config.num_image_tokens, model.config.hidden_size)
    torch.testing.assert_close(features[1:], by_tiles(model, image, grids), rtol=0, atol=1e-5)
    square = [(1, 1), (2, 2), (3, 3)]
    torch.testing.assert_close(features[:1], by_tiles(model, other, square), rtol=0, atol=1e-5)
    assert sum(calls) == sum(rows * columns for rows, columns in [*square, *grids])
    assert max(calls) <= (tiles_per_call or sum(calls))


def test_it_is_saved_and_learns(tmp_path) -> None:
    model = tower()
    images = torch.stack([padded(torch.randn(3, 40, 96), 96), torch.randn(3, 96, 96)])
    model.train()(images).last_hidden_state.square().sum().backward()
    assert all(weight.grad is not None for weight in model.backbone.encoder.parameters())
    model.eval().save_pretrained(tmp_path)
    again = S2VisionModel.from_pretrained(tmp_path)
    assert again.config.keep_aspect
    with torch.no_grad():
        torch.testing.assert_close(again(images).last_hidden_state, model(images).last_hidden_state)


@pytest.mark.parametrize("options", [{"split": False}, {"max_split_size": 12}, {"resize_output_to_idx": 1}])
def test_what_it_cannot_go_with(options: dict) -> None:
    backbone = {"model_type": "clip_vision_model", "image_size": BASE, "patch_size": PATCH}
    with pytest.raises(ValueError, match="keep_aspect"):
        S2VisionConfig(backbone_config=backbone, scales=[BASE, 2 * BASE], keep_aspect=True, **options)
