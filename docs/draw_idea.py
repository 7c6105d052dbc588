"""Draws docs/images/idea.png: how S² sees a picture. Run: python docs/draw_idea.py"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyArrowPatch, Rectangle

from llava_s2.synthetic.scenes import SceneConfig, make_scene

SCALES = (336, 672, 1008)
COLORS = ("#4c72b0", "#55a868", "#c44e52")
INK = "#333333"


def main() -> None:
    picture = make_scene("test", 10_000, SceneConfig(side=(1008, 1008), thing_share=(0.06, 0.1))).image
    figure, axes = plt.subplots(figsize=(11, 4.3))
    axes.set_xlim(0, 110)
    axes.set_ylim(0, 43)
    axes.axis("off")
    middles = (36.5, 25.0, 9.5)
    for count, (scale, color, middle) in enumerate(zip(SCALES, COLORS, middles, strict=True), start=1):
        side = 5.5 * count
        left, bottom = 14 - side / 2, middle - side / 2
        small = np.asarray(picture.resize((scale, scale)))
        axes.imshow(small, extent=(left, left + side, bottom, bottom + side), aspect="auto", zorder=1)
        for row in range(count):
            for column in range(count):
                corner = (left + column * 5.5, bottom + row * 5.5)
                axes.add_patch(Rectangle(corner, 5.5, 5.5, fill=False, edgecolor=color, linewidth=1.6, zorder=2))
        axes.text(2, middle, f"{scale}²", ha="center", va="center", fontsize=11, color=color, weight="bold")
        tiles = f"{count * count} tile{'s' if count > 1 else ''} of 336²"
        _arrow(axes, (24, middle), (33, 23 + (middle - 23) * 0.3), color)
        axes.text(26.5, middle + (2 if count < 3 else -3), tiles, fontsize=8, color=color, ha="left", va="center")
        _arrow(axes, (45, 23 + (middle - 23) * 0.3), (54, middle), color)
        _feature_map(axes, 60, middle, count, color)
        if count > 1:
            axes.text(60, middle + 1.9 * count + 1.4, "average-pooled", fontsize=7.5, color=color, ha="center")
        _arrow(axes, (66.5, middle), (73, 23 + (middle - 23) * 0.28), color)

    axes.add_patch(Rectangle((33, 16.5), 12, 13, facecolor="#eeeeee", edgecolor=INK, linewidth=1.4))
    axes.text(39, 23, "CLIP\n(frozen,\nthe same\nfor all tiles)", ha="center", va="center", fontsize=9, color=INK)
    for index, color in enumerate(COLORS):
        axes.add_patch(Rectangle((73.5 + index * 2.2, 18.5), 2.2, 9, facecolor=color, alpha=0.75, edgecolor="white"))
    axes.text(76.8, 30.3, "concatenated:\n576 tokens of 3072", ha="center", va="center", fontsize=8.5, color=INK)
    for x, text in ((83.5, "projector"), (96, "Vicuna\n+ LoRA")):
        axes.add_patch(Rectangle((x, 18.5), 10, 9, facecolor="#eeeeee", edgecolor=INK, linewidth=1.4))
        axes.text(x + 5, 23, text, ha="center", va="center", fontsize=9, color=INK)
    _arrow(axes, (80.3, 23), (83.3, 23), INK)
    _arrow(axes, (93.6, 23), (95.8, 23), INK)
    axes.text(94.7, 14.5, "still 576 visual tokens", ha="center", va="center", fontsize=9, color=INK, weight="bold")

    path = Path(__file__).parent / "images" / "idea.png"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110, bbox_inches="tight", facecolor="white")
    print(path)


def _arrow(axes: plt.Axes, start: tuple[float, float], end: tuple[float, float], color: str) -> None:
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color=color, linewidth=1.3))


def _feature_map(axes: plt.Axes, x: float, y: float, count: int, color: str) -> None:
    """A grid of count x count maps: what a scale has before pooling."""
    shades = np.random.default_rng(count).uniform(0.25, 0.95, (4 * count, 4 * count))
    side = 3.8 * count / 2
    for row in range(4 * count):
        for column in range(4 * count):
            cell = 2 * side / (4 * count)
            corner = (x - side + column * cell, y - side + row * cell)
            axes.add_patch(Rectangle(corner, cell, cell, facecolor=color, alpha=shades[row, column], linewidth=0))


if __name__ == "__main__":
    main()
