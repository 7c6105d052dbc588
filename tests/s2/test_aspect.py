"""Tiles on a picture's own aspect ratio: which tiles, the same tokens out, and through a whole LLaVA."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from llava_s2.s2 import S2VisionConfig, S2VisionModel
from llava_s2.s2.aspect import content_boxes, tile_grid

BASE, PATCH = 24, 6
GRID = BASE // PATCH


def tower() -> S2VisionModel:
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
    return S2VisionModel.wrap(backbone, [BASE, 2 * BASE, 3 * BASE], feature_layer=-1, keep_aspect=True)


def padded(picture: Tensor, side: int) -> Tensor:
    """A picture (3, h, w) in the middle of a square of the mean colour, as LLaVA pads it."""
    square = torch.full((3, side, side), 0.0021)
    top, left = (side - picture.shape[1]) // 2, (side - picture.shape[2]) // 2
    square[:, top : top + picture.shape[1], left : left + picture.shape[2]] = picture
    return square


@given(height=st.integers(1, 400), width=st.integers(1, 400), most=st.integers(1, 4))
def test_the_grid_is_the_nearest_in_shape(height: int, width: int, most: int) -> None:
    rows, columns = tile_grid(height, width, most)
    assert rows * columns <= most**2
    distance = abs(math.log(columns / rows * height / width))
    for r in range(1, most + 2):
        for c in range(1, most + 2):
            if r * c <= most**2:
                other = abs(math.log(c / r * height / width))
                assert other > distance - 1e-5
                assert other > distance + 1e-5 or r * c <= rows * columns


@pytest.mark.parametrize(("size", "grid"), [((1, 1), (3, 3)), ((3, 4), (2, 3)), ((1, 2), (2, 4)), ((9, 1), (4, 1))])
def test_grids_of_usual_pictures(size: tuple[int, int], grid: tuple[int, int]) -> None:
    assert tile_grid(*size, 3) == grid


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


@pytest.mark.parametrize(
    ("size", "grids"), [((48, 96), [(1, 1), (1, 2), (2, 4)]), ((96, 64), [(1, 1), (2, 1), (3, 2)])]
)
@torch.no_grad()
def test_features_are_those_of_the_tiles(size: tuple[int, int], grids: list[tuple[int, int]]) -> None:
    model, picture = tower(), torch.randn(3, *size) + 0.5
    assert model.config.image_size == 4 * BASE == 96
    maps = []
    for rows, columns in grids:
        resized = F.interpolate(picture[None], size=(rows * BASE, columns * BASE), mode="bicubic")
        whole = torch.zeros(1, 16, rows * GRID, columns * GRID)
        for row in range(rows):
            for column in range(columns):
                y, x = row * BASE, column * BASE
                tokens = model.backbone(resized[:, :, y : y + BASE, x : x + BASE]).last_hidden_state[:, 1:]
                y, x = row * GRID, column * GRID
                whole[:, :, y : y + GRID, x : x + GRID] = tokens.transpose(1, 2).unflatten(2, (GRID, GRID))
        maps.append(F.interpolate(whole, size=(GRID, GRID), mode="area"))
    expected = torch.cat(maps, dim=1).flatten(2).transpose(1, 2)
    other = torch.randn(3, 96, 96)
    features = model(torch.stack([other, padded(picture, 96)])).last_hidden_state
    assert features.shape == (2, model.config.num_image_tokens, model.config.hidden_size)
    torch.testing.assert_close(features[1:], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(features[:1], model(other[None]).last_hidden_state, rtol=0, atol=1e-5)


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
