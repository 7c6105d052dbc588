"""Photographs with small named things on them, whose names, colours and places a question can ask for.

Everything follows from a seed. Train and test share no photograph, no style of drawing and no layout: the cells that an
image's things stand in are its layout, and a layout belongs to one split only (by its checksum). Names, colours and
cells are drawn independently and uniformly, so nothing in a question's text tells its answer.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from PIL import Image

from llava_s2.synthetic.sprites import names_of, paste, sprite
from llava_s2.synthetic.thing_names import COLORS, NAMES, TINTED, with_article

Split = Literal["train", "test"]
_T = TypeVar("_T")

STYLES_OF_SPLIT: dict[Split, tuple[str, ...]] = {
    "train": ("fluent_flat", "twemoji", "emojitwo", "streamline"),
    "test": ("noto", "fluent_3d"),
}
_PHOTOGRAPHS = Path(__file__).parent / "photographs"
_COLUMNS = 8


@dataclass(frozen=True)
class Thing:
    """A named thing and its box in pixels of the image: left, top, right, bottom. ``color`` only where it is tinted."""

    name: str
    color: str | None
    box: tuple[int, int, int, int]

    @property
    def x(self) -> float:
        """Horizontal centre in pixels."""
        return (self.box[0] + self.box[2]) / 2

    @property
    def y(self) -> float:
        """Vertical centre in pixels."""
        return (self.box[1] + self.box[3]) / 2

    @property
    def phrase(self) -> str:
        """The thing with its article, such as ``an orange key`` or ``a fox``."""
        return with_article(self.name, self.color)


@dataclass(frozen=True)
class Scene:
    """An image (RGB), the things on it from left to right, and all the names that could have been drawn."""

    image: Image.Image
    things: tuple[Thing, ...]
    vocabulary: tuple[str, ...] = tuple(NAMES)

    def alone(self) -> list[Thing]:
        """The things whose name no other thing has."""
        names = [thing.name for thing in self.things]
        return [thing for thing in self.things if names.count(thing.name) == 1]

    def absent(self, tinted: bool, rng: np.random.Generator) -> list[str]:
        """Names that could have been drawn, tinted or not, and are not in the image, in random order."""
        present = {thing.name for thing in self.things}
        names = [name for name in self.vocabulary if (name in TINTED) == tinted and name not in present]
        return rng.permutation(names).tolist()


@dataclass(frozen=True)
class SceneConfig:
    """What images look like.

    Args:
        side: smallest and largest longer side of the image, in pixels.
        thing_share: smallest and largest side of a thing, as a share of the image's longer side. The default is 14 to
            20 of 448 pixels, the embedded default's largest scale, and so 3.5 to 5 of 112, its smallest.
        things: smallest and largest number of things.
        repeated: share of the images in which one thing stands twice or three times.
        empty: share of the images that are a photograph alone.
        styles: styles of drawing, those of the split where None.
        aspects: widths over heights that images have.
    """

    side: tuple[int, int] = (1000, 4000)
    thing_share: tuple[float, float] = (14 / 448, 20 / 448)
    things: tuple[int, int] = (3, 6)
    repeated: float = 0.0
    empty: float = 0.0
    styles: tuple[str, ...] | None = None
    aspects: tuple[float, ...] = (4 / 3, 3 / 2, 1.0, 3 / 4)

    def __post_init__(self) -> None:
        if not 64 <= self.side[0] <= self.side[1]:
            raise ValueError(f"images of {self.side[0]} to {self.side[1]} px: must be at least 64 px")
        if not 0 < self.thing_share[0] <= self.thing_share[1] <= 1 / _COLUMNS:
            raise ValueError(
                f"things of {self.thing_share[0]} to {self.thing_share[1]} of the image's side: must be above 0 and "
                f"fit one of {_COLUMNS} columns"
            )
        if not 2 <= self.things[0] <= self.things[1] <= 24:
            raise ValueError(f"{self.things[0]} to {self.things[1]} things an image: must be 2 to 24")


def split_of_layout(cells: Sequence[int]) -> Split:
    """The split that the layout (numbers of the occupied cells, in any order) belongs to; one in four is ``test``."""
    return "test" if zlib.crc32(bytes(sorted(cells))) % 4 == 0 else "train"


def photographs(split: Split) -> list[str]:
    """Names of the split's photographs."""
    return sorted(path.stem for path in (_PHOTOGRAPHS / split).glob("*.jpg"))


def make_scene(split: Split, seed: int, config: SceneConfig = SceneConfig()) -> Scene:
    """Draws the image with this split and seed; the same arguments give the same pixels."""
    rng = np.random.default_rng([("train", "test").index(split), seed])
    image = background(split, config, rng)
    styles = config.styles or STYLES_OF_SPLIT[split]
    vocabulary = tuple(name for name in NAMES if any(name in names_of(style) for style in styles))
    things = []
    for thing in lay_out(split, image.size, vocabulary, config, rng):
        style = _pick([style for style in styles if thing.name in names_of(style)], rng)
        drawing = sprite(style, _pick(names_of(style)[thing.name], rng), thing.color)
        box = paste(image, drawing, int(thing.x), int(thing.y), thing.box[2] - thing.box[0])
        things.append(replace(thing, box=box))
    return Scene(image, tuple(sorted(things, key=lambda thing: (thing.x, thing.y))), vocabulary)


def lay_out(
    split: Split, size: tuple[int, int], vocabulary: Sequence[str], config: SceneConfig, rng: np.random.Generator
) -> list[Thing]:
    """Things out of a vocabulary and the squares that they are to be drawn in, on an image of this width and height."""
    if rng.random() < config.empty:
        return []
    cell = max(size) / _COLUMNS
    columns, rows = (int(extent / cell) for extent in size)
    names, colors = _draw_names(vocabulary, config, rng)
    cells = rng.choice(columns * rows, size=len(names), replace=False)
    while split_of_layout(cells.tolist()) != split:
        cells = rng.choice(columns * rows, size=len(names), replace=False)
    things = []
    for place, name, color in zip(cells.tolist(), names, colors, strict=True):
        side = int(max(size) * rng.uniform(*config.thing_share))
        left, top = (int(at * cell + rng.uniform(0, cell - side)) for at in (place % columns, place // columns))
        things.append(Thing(name, color, (left, top, left + side, top + side)))
    return things


def _pick(values: Sequence[_T], rng: np.random.Generator) -> _T:
    return values[int(rng.integers(len(values)))]


def _draw_names(
    vocabulary: Sequence[str], config: SceneConfig, rng: np.random.Generator
) -> tuple[list[str], list[str | None]]:
    """Names and colours: half of the things are tinted, no colour twice; names are distinct but for a repeated one."""
    count = int(rng.integers(config.things[0], config.things[1] + 1))
    with_color = min((count + int(rng.integers(2))) // 2, len(COLORS))
    names = rng.permutation([name for name in vocabulary if name in TINTED]).tolist()[:with_color]
    colors: list[str | None] = [*rng.permutation(list(COLORS)).tolist()[:with_color]]
    names += rng.permutation([name for name in vocabulary if name not in TINTED]).tolist()[: count - with_color]
    colors += [None] * (count - with_color)
    if rng.random() < config.repeated:
        more = int(rng.integers(1, 3))
        names += [names[-1]] * more
        colors += [colors[-1]] * more
    return names, colors


def background(split: Split, config: SceneConfig, rng: np.random.Generator) -> Image.Image:
    """A part of one of the split's photographs, mirrored in half of the cases."""
    photograph = _photograph(split, _pick(photographs(split), rng))
    aspect = _pick(config.aspects, rng)
    width = min(photograph.width, photograph.height * aspect) * rng.uniform(0.6, 1)
    height = width / aspect
    left, top = rng.uniform(0, photograph.width - width), rng.uniform(0, photograph.height - height)
    longer = float(np.exp(rng.uniform(*np.log(config.side))))
    scale = longer / max(width, height)
    part = photograph.resize(
        (round(width * scale), round(height * scale)),
        Image.Resampling.BICUBIC,
        box=(left, top, left + width, top + height),
    )
    return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else part


@lru_cache(maxsize=12)
def _photograph(split: Split, name: str) -> Image.Image:
    return Image.open(_PHOTOGRAPHS / split / f"{name}.jpg").convert("RGB")
