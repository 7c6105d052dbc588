"""Pictures of any aspect ratio in a square that was padded: where the picture is, and which tiles fit it."""

import math

from torch import Tensor

# Padding is the mean colour, cut to 8 bits: 0 after normalisation but for less than one step of 1 / 255 over a standard
# deviation of at least 0.2.
_MEAN_COLOUR = 0.02

Box = tuple[int, int, int, int]  # top, bottom, left, right


def content_boxes(images: Tensor) -> list[Box]:
    """The picture inside its padding, for each of a batch of squares.

    Args:
        images: (B, C, S, S), normalised; a picture that was padded to a square with the mean colour on two opposite
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


def tile_grid(height: int, width: int, most: int) -> tuple[int, int]:
    """Rows and columns of tiles whose shape is nearest to a picture's, at most `most` squared of them.

    A side has at most `most` + 1 tiles. Of grids equally near the one with more tiles is taken.
    """
    grids = [
        (rows, columns) for rows in range(1, most + 2) for columns in range(1, most + 2) if rows * columns <= most**2
    ]
    wanted = math.log(width / height)
    return min(grids, key=lambda grid: (round(abs(math.log(grid[1] / grid[0]) - wanted), 6), -grid[0] * grid[1]))
