"""Images of any aspect ratio in a square that was padded: where the image is, and which tiles fit it."""

import math

from torch import Tensor

# Padding is the mean colour, cut to 8 bits: 0 after normalisation but for less than one step of 1 / 255 over a standard
# deviation of at least 0.2.
_MEAN_COLOUR = 0.02

Box = tuple[int, int, int, int]  # top, bottom, left, right
Grid = tuple[int, int]  # rows, columns


def content_boxes(images: Tensor) -> list[Box]:
    """The image inside its padding, for each of a batch of squares.

    Args:
        images: (B, C, S, S), normalised; an image that was padded to a square with the mean colour on two opposite
            sides, which is how LLaVA does it.

    Returns:
        Rows and columns, ends exclusive. The whole square where nothing, or everything, is padding.
    """
    side = images.shape[-1]
    empty = images.abs() <= _MEAN_COLOUR
    # One colour, not several near the mean.
    padding = (empty & (images == images[:, :, :1, :1])).all(1)
    boxes = []
    for rows, columns in zip((~padding.all(2)).tolist(), (~padding.all(1)).tolist(), strict=True):
        if not any(rows):
            boxes.append((0, side, 0, side))
            continue
        top, left = rows.index(True), columns.index(True)
        bottom, right = side - rows[::-1].index(True), side - columns[::-1].index(True)
        if bottom - top < right - left:
            left, right = 0, side
        else:
            top, bottom = 0, side
        boxes.append((top, bottom, left, right))
    return boxes


def kept_grids(height: int, width: int, tiles_per_side: list[int]) -> list[Grid]:
    """A grid of tiles for each scale, nearest to an image's shape. Each scale has more tiles than the one before.

    Args:
        tiles_per_side: n of each scale, ascending: its grid has at most n squared tiles and n + 1 on a side. Of grids
            that are equally near the one with more tiles is taken.
    """
    grids: list[Grid] = []
    for most in tiles_per_side:
        before = grids[-1][0] * grids[-1][1] if grids else 0

        def key(grid: Grid) -> tuple[float, int]:
            return round(abs(math.log(grid[1] / grid[0]) - math.log(width / height)), 6), -grid[0] * grid[1]

        grids.append(min(_grids(before + 1, most**2, most + 1), key=key))
    return grids


def dynamic_grids(height: int, width: int, tiles_per_side: list[int]) -> list[Grid]:
    """Dynamic-S2 (NVILA, arXiv:2412.04468): the smaller scales are square, whatever the image's shape.

    The largest, of n tiles a side, has the grid of n squared to n squared + n tiles (9 to 12 where n is 3) whose width
    over height is nearest to the image's, as InternVL and NVILA choose it.
    """
    *small, most = tiles_per_side
    largest = min(
        _grids(most**2, most**2 + most, most**2 + most),
        key=lambda grid: (round(abs(grid[1] / grid[0] - width / height), 6), -grid[0] * grid[1]),
    )
    return [*((side, side) for side in small), largest]


def _grids(fewest: int, most: int, longest: int) -> list[Grid]:
    """Grids of `fewest` to `most` tiles, at most `longest` on a side."""
    sides = range(1, longest + 1)
    return [(rows, columns) for rows in sides for columns in sides if fewest <= rows * columns <= most]
