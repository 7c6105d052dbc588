"""Sprites of named things in several styles, and how one is put onto an image.

A style is one free emoji set (NOTICE), drawn by ``scripts/train/things_sprites.py`` into an atlas of cells of 72 x 72
pixels with transparency.
"""

import json
import math
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from llava_s2.synthetic.thing_names import COLORS

_FOLDER = Path(__file__).parent / "sprites"
_CELL = 72
_INDEX: dict[str, list[str]] = json.loads((_FOLDER / "index.json").read_text())
# Nothing was ever trained on this style: it tells how far the model's knowledge reaches.
HELD_OUT_STYLE = "fxemoji"
STYLES: tuple[str, ...] = tuple(style for style in _INDEX if style != HELD_OUT_STYLE)
_FILTERS = (Image.Resampling.BOX, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)


@lru_cache(maxsize=len(_INDEX))
def _atlas(style: str) -> Image.Image:
    return Image.open(_FOLDER / f"{style}.webp").convert("RGBA")


@lru_cache(maxsize=len(_INDEX))
def names_of(style: str) -> dict[str, tuple[int, ...]]:
    """The words that a style has sprites for, each with the numbers of its cells."""
    cells: dict[str, tuple[int, ...]] = {}
    for number, word in enumerate(_INDEX[style]):
        cells[word] = (*cells.get(word, ()), number)
    return cells


@lru_cache(maxsize=4096)
def sprite(style: str, number: int, color: str | None = None) -> Image.Image:
    """The sprite in a cell (72, 72) RGBA, cut to its visible box; ``color`` tints it and keeps its shading."""
    atlas = _atlas(style)
    columns = math.ceil(math.sqrt(len(_INDEX[style])))
    left, top = number % columns * _CELL, number // columns * _CELL
    image = atlas.crop((left, top, left + _CELL, top + _CELL))
    image = image.crop(image.getchannel("A").getbbox())
    if color is None:
        return image
    light = np.asarray(image.convert("L"), np.float32) / 255
    visible = np.asarray(image.getchannel("A")) > 128
    low, high = np.percentile(light[visible], (5, 95))
    shade = np.clip((light - low) / max(high - low, 0.05), 0, 1)[..., None]
    # The darkest parts keep 45 % of the colour, the lightest all of it and a little white.
    tinted = np.array(COLORS[color], np.float32) * (0.45 + 0.55 * shade) + 25 * shade**3
    result = Image.fromarray(np.clip(tinted, 0, 255).astype(np.uint8)).convert("RGBA")
    result.putalpha(image.getchannel("A"))
    return result


def paste(
    image: Image.Image, drawing: Image.Image, x: int, y: int, side: int, rng: np.random.Generator | None = None
) -> tuple[int, int, int, int]:
    """Pastes a sprite so that its longer side is ``side`` pixels and its centre is at (x, y).

    With ``rng`` it is also mirrored, turned by up to 15 degrees, and resized by one of several filters.

    Returns:
        The pasted box: left, top, right, bottom in pixels; it may reach past the image's border.
    """
    scale = side / max(drawing.size)
    width, height = drawing.size
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    method = Image.Resampling.LANCZOS
    if rng is not None:
        method = _FILTERS[int(rng.integers(len(_FILTERS)))]
        if rng.random() < 0.5:
            drawing = drawing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    small = drawing.resize(size, method, reducing_gap=2.0)
    if rng is not None and rng.random() < 0.4:
        small = small.rotate(float(rng.uniform(-15, 15)), Image.Resampling.BICUBIC, expand=True)
    left, top = x - small.width // 2, y - small.height // 2
    image.paste(small, (left, top), small)
    return left, top, left + small.width, top + small.height
