"""Draws docs/images/idea.png: how S² sees a photograph. Run: python docs/draw_idea.py"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyArrowPatch, Rectangle
from PIL import Image

SCALES = (336, 672, 1008)
COLORS = ("#4c72b0", "#55a868", "#c44e52")
INK = "#333333"
ROWS = (41.0, 27.5, 9.5)  # heights of the scales' middles
TILE = 5.5


def main() -> None:
    root = Path(__file__).parents[1]
    # scikit-learn's china.jpg, by Yuan (CC BY): NOTICE.
    photograph = Image.open(root / "llava_s2/synthetic/photographs/train/pagoda.jpg").convert("RGB")
    side = min(photograph.size)
    left = (photograph.width - side) // 2
    photograph = photograph.crop((left, 0, left + side, side))
    figure, axes = plt.subplots(figsize=(11.6, 4.9))
    axes.set_xlim(0, 116)
    axes.set_ylim(0, 49)
    axes.axis("off")
    for x, text in ((22, "the image at three scales"), (71, "features, pooled to 24 x 24")):
        axes.text(x, 47.5, text, ha="center", va="center", fontsize=9.5, color=INK)
    for count, (scale, color, middle) in enumerate(zip(SCALES, COLORS, ROWS, strict=True), start=1):
        extent = TILE * count
        corner_x, bottom = 22 - extent / 2, middle - extent / 2
        shown = np.asarray(photograph.resize((scale, scale)))
        axes.imshow(shown, extent=(corner_x, corner_x + extent, bottom, bottom + extent), aspect="auto", zorder=1)
        for row in range(count):
            for column in range(count):
                corner = (corner_x + column * TILE, bottom + row * TILE)
                axes.add_patch(Rectangle(corner, TILE, TILE, fill=False, edgecolor=color, linewidth=1.6, zorder=2))
        axes.text(5, middle + 1.3, f"{scale}²", ha="center", va="center", fontsize=12, color=color, weight="bold")
        tiles = f"{count * count} tile{'s' if count > 1 else ''}"
        axes.text(5, middle - 1.8, tiles, ha="center", va="center", fontsize=9, color=color)
        _arrow(axes, (31.5, middle), (40.5, 25 + (middle - 25) * 0.28), color)
        _arrow(axes, (54.5, 25 + (middle - 25) * 0.28), (60.5, middle), color)
        _feature_map(axes, 66, middle, photograph, count, color)
        if count > 1:
            _arrow(axes, (66 + 1.7 * count + 0.7, middle), (74.2, middle), color)
            _feature_map(axes, 77, middle, photograph, count, color, pooled=True)
        _arrow(axes, (80.2 if count > 1 else 69, middle), (85.2, 25 + (middle - 25) * 0.28), color)

    _box(axes, 41, 18, 13, 14, "CLIP\n(frozen,\nthe same for\nall 14 tiles\nof 336²)")
    for index, color in enumerate(COLORS):
        axes.add_patch(Rectangle((86 + index * 2, 20.5), 2, 9, facecolor=color, alpha=0.75, edgecolor="white"))
    axes.text(87, 33.5, "concatenated:\n576 tokens x 3072", ha="left", va="center", fontsize=8.5, color=INK)
    _box(axes, 94.5, 20.5, 9, 9, "projector")
    _box(axes, 106, 20.5, 9, 9, "Vicuna\n+ LoRA")
    _arrow(axes, (92.2, 25), (94.4, 25), INK)
    _arrow(axes, (103.6, 25), (105.9, 25), INK)
    axes.text(104.7, 16.5, "still 576\nvisual tokens", ha="center", va="center", fontsize=9, color=INK, weight="bold")

    path = root / "docs/images/idea.png"
    figure.savefig(path, dpi=110, bbox_inches="tight", facecolor="white")
    print(path)


def _box(axes: plt.Axes, x: float, y: float, width: float, height: float, text: str) -> None:
    axes.add_patch(Rectangle((x, y), width, height, facecolor="#eeeeee", edgecolor=INK, linewidth=1.4))
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=8.5, color=INK)


def _arrow(axes: plt.Axes, start: tuple[float, float], end: tuple[float, float], color: str) -> None:
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color=color, linewidth=1.3))


def _feature_map(
    axes: plt.Axes, x: float, y: float, photograph: Image.Image, count: int, color: str, pooled: bool = False
) -> None:
    """A coarse map that stands for a scale's features: brightness of the photograph, 6 x 6 cells a tile."""
    cells = 6 * count
    shades = np.asarray(photograph.convert("L").resize((cells, cells)), np.float32) / 255
    if pooled:
        shades = shades.reshape(6, count, 6, count).mean((1, 3))
        cells = 6
    side = 1.7 * (1 if pooled else count)
    cell = 2 * side / cells
    for row in range(cells):
        for column in range(cells):
            corner = (x - side + column * cell, y + side - (row + 1) * cell)
            alpha = 0.95 - 0.8 * float(shades[row, column])
            axes.add_patch(Rectangle(corner, cell, cell, facecolor=color, alpha=alpha, linewidth=0))


if __name__ == "__main__":
    main()
