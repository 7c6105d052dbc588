"""Synthetic V*-like images: cluttered, with small named objects whose colour and position a question can ask for.

Everything follows from a seed. The cells that an image's objects stand in are its layout; a layout belongs to one
split only (by its checksum), so train and test share neither seeds nor layouts. Kinds, colours and cells are drawn
independently and uniformly: nothing in a question's text tells its answer.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from llava_s2.synthetic.names import COLORS

Split = Literal["train", "test"]

# Outlines in a 100 x 100 box: "polygon" and corners, "ellipse" and its bounding box, "line" with points and a width.
_SHAPES: dict[str, list[tuple]] = {
    "star": [
        (
            "polygon",
            [
                (50, 2),
                (62, 36),
                (98, 37),
                (69, 59),
                (80, 95),
                (50, 74),
                (20, 95),
                (31, 59),
                (2, 37),
                (38, 36),
            ],
        )
    ],
    "heart": [
        ("ellipse", (4, 10, 54, 58)),
        ("ellipse", (46, 10, 96, 58)),
        ("polygon", [(8, 46), (92, 46), (50, 96)]),
    ],
    "fish": [("ellipse", (2, 26, 72, 76)), ("polygon", [(62, 50), (98, 20), (98, 82)])],
    "tree": [
        ("polygon", [(50, 2), (84, 44), (16, 44)]),
        ("polygon", [(50, 24), (94, 76), (6, 76)]),
        ("polygon", [(42, 74), (58, 74), (58, 98), (42, 98)]),
    ],
    "car": [
        ("polygon", [(2, 46), (24, 46), (36, 20), (70, 20), (80, 46), (98, 50), (98, 72), (2, 72)]),
        ("ellipse", (12, 58, 40, 88)),
        ("ellipse", (60, 58, 88, 88)),
    ],
    "house": [("polygon", [(50, 4), (98, 46), (86, 46), (86, 96), (14, 96), (14, 46), (2, 46)])],
    "cup": [
        ("polygon", [(6, 14), (70, 14), (62, 92), (14, 92)]),
        ("line", [(66, 28), (92, 30), (92, 60), (64, 66)], 9),
    ],
    "bottle": [("polygon", [(42, 2), (58, 2), (58, 30), (74, 48), (74, 98), (26, 98), (26, 48), (42, 30)])],
    "umbrella": [
        ("polygon", [(2, 52), (10, 26), (30, 8), (50, 4), (70, 8), (90, 26), (98, 52)]),
        ("line", [(50, 50), (50, 88), (66, 94), (70, 82)], 8),
    ],
    "key": [
        ("line", [(28, 4), (46, 12), (52, 28), (46, 44), (28, 52), (10, 44), (4, 28), (10, 12), (28, 4)], 13),
        ("line", [(44, 44), (94, 94)], 13),
        ("line", [(72, 72), (88, 58)], 11),
    ],
    "moon": [("polygon", [(66, 2), (30, 12), (10, 50), (30, 88), (66, 98), (46, 72), (42, 50), (46, 28)])],
    "flag": [("line", [(14, 2), (14, 98)], 11), ("polygon", [(14, 6), (96, 30), (14, 58)])],
}
KINDS: tuple[str, ...] = tuple(_SHAPES)

_SUPERSAMPLING = 4
_MASK_SIDE = 96
_BACKGROUNDS = 64


@dataclass(frozen=True)
class SceneObject:
    """One object: its names, and its box's centre and side in pixels of the image."""

    kind: str
    color: str
    x: int
    y: int
    side: int

    @property
    def phrase(self) -> str:
        """The object with its article, such as ``an orange key``."""
        return f"{'an' if self.color[0] in 'aeiou' else 'a'} {self.color} {self.kind}"


@dataclass(frozen=True)
class Scene:
    """An image (RGB, square) and the objects on it, no kind twice, from left to right."""

    image: Image.Image
    objects: tuple[SceneObject, ...]


@dataclass(frozen=True)
class SceneConfig:
    """What images look like; sizes in pixels.

    Args:
        side: side of the square image.
        object_side: smallest and largest side of an object.
        objects: smallest and largest number of objects.
        cells: the image is a grid of cells x cells places, one object a place. 8 does not fit the 7 x 7 visual
            tokens of the embedded default, so objects lie across tokens as they do in photographs.
        clutter: number of meaningless strokes and blots a 112 x 112 area.
    """

    side: int = 336
    object_side: tuple[int, int] = (12, 16)
    objects: tuple[int, int] = (4, 5)
    cells: int = 8
    clutter: float = 6.0

    def __post_init__(self) -> None:
        cell, most = self.side // self.cells, min(len(KINDS), self.cells**2)
        if not 4 <= self.object_side[0] <= self.object_side[1] <= cell:
            raise ValueError(
                f"objects of {self.object_side[0]} to {self.object_side[1]} px: must be at least 4 px and fit a place "
                f"of {cell} px ({self.side} px in {self.cells} places)"
            )
        if not 2 <= self.objects[0] <= self.objects[1] <= most:
            raise ValueError(f"{self.objects[0]} to {self.objects[1]} objects an image: must be 2 to {most}")


def split_of_layout(cells: Sequence[int]) -> Split:
    """The split that the layout (numbers of the occupied cells, in any order) belongs to; one in four is ``test``."""
    return "test" if zlib.crc32(bytes(sorted(cells))) % 4 == 0 else "train"


def make_scene(split: Split, seed: int, config: SceneConfig = SceneConfig()) -> Scene:
    """Draws the image with this split and seed; the same arguments give the same pixels."""
    rng = np.random.default_rng([("train", "test").index(split), seed])
    count = int(rng.integers(config.objects[0], config.objects[1] + 1))
    cells = rng.choice(config.cells**2, size=count, replace=False)
    while split_of_layout(cells.tolist()) != split:
        cells = rng.choice(config.cells**2, size=count, replace=False)
    kinds = rng.choice(len(KINDS), size=count, replace=False)
    colors = rng.integers(len(COLORS), size=count)
    cell_side = config.side // config.cells
    objects = []
    for cell, kind, color in zip(cells.tolist(), kinds.tolist(), colors.tolist(), strict=True):
        side = int(rng.integers(config.object_side[0], config.object_side[1] + 1))
        slack = cell_side - side
        x = (cell % config.cells) * cell_side + side // 2 + int(rng.integers(slack + 1))
        y = (cell // config.cells) * cell_side + side // 2 + int(rng.integers(slack + 1))
        objects.append(SceneObject(KINDS[kind], list(COLORS)[color], x, y, side))
    return draw_scene(objects, config, rng)


def draw_scene(objects: Sequence[SceneObject], config: SceneConfig, rng: np.random.Generator) -> Scene:
    """Draws the given objects over clutter."""
    backdrop = _background(int(rng.integers(_BACKGROUNDS)))
    if config.side <= backdrop.width:
        left, top = rng.integers(0, backdrop.width - config.side + 1, size=2).tolist()
        image = backdrop.crop((left, top, left + config.side, top + config.side))
    else:
        image = backdrop.resize((config.side, config.side), Image.Resampling.BICUBIC)
    _draw_clutter(image, config, rng)
    for item in objects:
        _paste(image, item, rng)
    return Scene(image, tuple(sorted(objects, key=lambda item: (item.x, item.y))))


@lru_cache(maxsize=_BACKGROUNDS)
def _background(index: int) -> Image.Image:
    """One of the backdrops: smooth muted colour at several frequencies, 448 x 448."""
    rng = np.random.default_rng([77, index])
    total = np.zeros((448, 448, 3), np.float32)
    for cells, weight in ((3, 34.0), (9, 20.0), (40, 13.0), (150, 8.0)):
        noise = rng.standard_normal((cells, cells, 3)).astype(np.float32)
        noise = 0.6 * noise.mean(axis=2, keepdims=True) + 0.4 * noise
        planes = [
            np.asarray(Image.fromarray(noise[..., c]).resize((448, 448), Image.Resampling.BICUBIC)) for c in range(3)
        ]
        total += weight * np.stack(planes, axis=-1)
    return Image.fromarray(np.clip(total + rng.uniform(85, 150), 0, 255).astype(np.uint8))


def _draw_clutter(image: Image.Image, config: SceneConfig, rng: np.random.Generator) -> None:
    draw = ImageDraw.Draw(image)
    count = int(rng.poisson(config.clutter * (config.side / 112) ** 2))
    corners = rng.integers(0, config.side, size=(count, 2)).tolist()
    sides = (rng.integers(3, 30, size=(count, 2)) * rng.choice([1.0, 0.4], size=(count, 2))).astype(int).tolist()
    fills = rng.uniform(50, 200, size=(count, 1)) + rng.normal(0, 16, size=(count, 3))
    forms = rng.integers(3, size=count).tolist()
    for (x, y), (width, height), fill, form in zip(
        corners, sides, fills.clip(0, 255).astype(int).tolist(), forms, strict=True
    ):
        if form == 0:
            draw.rectangle((x, y, x + width, y + height), fill=tuple(fill))
        elif form == 1:
            draw.ellipse((x, y, x + width, y + height), fill=tuple(fill))
        else:
            draw.line((x, y, x + width - 12, y + height), fill=tuple(fill), width=1 + width % 3)


@lru_cache(maxsize=len(KINDS) * 16)
def _mask(kind: str, degrees: int) -> Image.Image:
    """The object's silhouette, turned, as an antialiased 8-bit mask."""
    side = _MASK_SIDE * _SUPERSAMPLING
    image = Image.new("L", (side, side))
    draw = ImageDraw.Draw(image)
    factor = side / 100
    for form, points, *width in _SHAPES[kind]:
        if form == "ellipse":
            draw.ellipse([p * factor for p in points], fill=255)
        elif form == "polygon":
            draw.polygon([(x * factor, y * factor) for x, y in points], fill=255)
        else:
            scaled = [(x * factor, y * factor) for x, y in points]
            draw.line(scaled, fill=255, width=int(width[0] * factor), joint="curve")
    turned = image.rotate(degrees, Image.Resampling.BICUBIC)
    return turned.resize((_MASK_SIDE, _MASK_SIDE), Image.Resampling.BOX)


def _paste(image: Image.Image, item: SceneObject, rng: np.random.Generator) -> None:
    mask = _mask(item.kind, int(rng.integers(-2, 3)) * 6)
    inner = mask.resize((item.side, item.side), Image.Resampling.BOX)
    edge = inner.filter(ImageFilter.MaxFilter(3)) if item.side >= 12 else inner
    corner = (item.x - item.side // 2, item.y - item.side // 2)
    jitter = rng.normal(0, 9, size=3) + rng.normal(0, 9)
    color = np.clip(np.array(COLORS[item.color]) + jitter, 0, 255).astype(int)
    dark = tuple((color * 0.35).astype(int).tolist())
    if item.side >= 12:
        image.paste(dark, corner, edge)
    image.paste(tuple(color.tolist()), corner, inner)
