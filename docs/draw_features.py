"""Draws docs/images/s2_features.png: feature maps of a photograph at each scale. Run: python docs/draw_features.py

The photograph is matplotlib's sample picture of Grace Hopper (U.S. Navy, public domain), the tower the embedded one.
"""

from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.cbook import get_sample_data
from PIL import Image
from torch import Tensor

from llava_s2.model.assemble import load_image_processor
from llava_s2.model.embedded import SCALES, resolve_vision_tower
from llava_s2.s2 import S2VisionModel
from llava_s2.towers.load_tower import load_vision_backbone, load_vision_config

_FILE = Path(__file__).parent / "images" / "s2_features.png"


def main() -> None:
    tower_name = resolve_vision_tower("embedded")
    config = load_vision_config(tower_name)
    with get_sample_data("grace_hopper.jpg") as file:  # type: ignore[union-attr]
        photo = Image.open(file).convert("RGB").crop((60, 20, 460, 420))
    pixels = load_image_processor("embedded", list(SCALES))(photo, return_tensors="pt")

    whole: list[Tensor] = []
    pooled: list[Tensor] = []
    for index in range(len(SCALES)):  # each scale's own grid, and the first one's
        for found, grid_of in ((whole, index), (pooled, 0)):
            backbone = load_vision_backbone(tower_name, config, torch.float32)
            tower = S2VisionModel.wrap(backbone, list(SCALES), resize_output_to_idx=grid_of)
            with torch.inference_mode():
                features = tower(pixels["pixel_values"]).last_hidden_state[0].chunk(len(SCALES), dim=-1)[index]
            found.append(features)
    colors = _principal_colors(torch.cat(whole))

    figure, axes = plt.subplots(3, len(SCALES) + 1, figsize=(9.2, 6.6), layout="constrained")
    for column, side in enumerate(SCALES):
        count = side // SCALES[0]
        axes[0, column].imshow(photo.resize((side, side)))
        for line in range(1, count):
            for draw in (axes[0, column].axhline, axes[0, column].axvline):
                draw(line * SCALES[0] - 0.5, color="white", linewidth=1.5)
        axes[0, column].set_title(f"{side}², {count * count} tile{'s' if count > 1 else ''}", fontsize=10)
        axes[1, column].imshow(colors(whole[column]))
        axes[2, column].imshow(colors(pooled[column]))
    for axis, text in zip(
        axes[:, -1],
        (
            "The image at three scales,\ncut into tiles of 112²,\nall through one tower.",
            "The features, put back in place:\n7 x 7, 14 x 14, 28 x 28.\nColours: three principal\ncomponents.",
            "Averaged to 7 x 7 and\nconcatenated: 49 tokens,\n3 x 192 channels.",
        ),
        strict=True,
    ):
        axis.text(0, 0.5, text, fontsize=10, va="center", transform=axis.transAxes)
    for axis in axes.flat:
        axis.axis("off")
    figure.savefig(_FILE, dpi=100, facecolor="white")
    print(_FILE)


def _principal_colors(features: Tensor) -> Callable[[Tensor], np.ndarray]:
    """A function that colours features (n, D) by the first three principal components of these, as a square image."""
    mean = features.mean(0)
    _, _, axes = torch.linalg.svd(F.normalize(features - mean, dim=-1), full_matrices=False)

    def project(some: Tensor) -> Tensor:
        return F.normalize(some - mean, dim=-1) @ axes[:3].T

    low, high = torch.quantile(project(features), torch.tensor([0.02, 0.98]), dim=0)

    def colors(some: Tensor) -> np.ndarray:
        side = round(len(some) ** 0.5)
        return ((project(some) - low) / (high - low)).clamp(0, 1).view(side, side, 3).numpy()

    return colors


if __name__ == "__main__":
    main()
