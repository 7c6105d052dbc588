"""Share of tiles that need not be run because they are all padding, on photographs, and that features stay equal.

    python benchmarks/flat_tiles.py --photos PHOTOS --output benchmarks/results/flat_tiles.json

LLaVA-1.5's preparation (padded with CLIP's mean colour) on 336, 672 and 1008 squared, in front of a tower of CLIP's
tiles and patches with one small block of random weights: which tiles are flat does not depend on the weights. The
photographs come as they are, and cut to their middle strip of 2 : 1, 3 : 1 and 4 : 1.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from llava_s2.data.image_decoding import open_image
from llava_s2.model.processor import build_image_processor
from llava_s2.s2 import S2VisionModel

SCALES = [336, 672, 1008]
TILES = sum((side // SCALES[0]) ** 2 for side in SCALES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--photos", type=Path, required=True, help="folder of pictures")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args()
    photos = [open_image(path) for path in sorted(args.photos.iterdir())]
    groups = {"as they are": photos}
    groups |= {f"{ratio} : 1": [strip(photo, ratio) for photo in photos] for ratio in (2, 3, 4)}
    rows = {name: measure(pictures) for name, pictures in groups.items()}
    text = json.dumps({"command": f"python {' '.join(sys.argv)}", "photos": len(photos), "shapes": rows}, indent=1)
    print(text)
    if args.output:
        args.output.write_text(text + "\n", encoding="utf-8")


def strip(photo: Image.Image, ratio: int) -> Image.Image:
    """The middle of a photograph, `ratio` times as wide as high."""
    height = min(photo.height, photo.width // ratio)
    left, top = (photo.width - ratio * height) // 2, (photo.height - height) // 2
    return photo.crop((left, top, left + ratio * height, top + height))


@torch.inference_mode()
def measure(pictures: list[Image.Image]) -> dict[str, Any]:
    """Tiles that were not run, of all, and the largest difference to a tower that runs them all."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=336, patch_size=14
    )
    tower = S2VisionModel.wrap(CLIPVisionModel(config).eval(), SCALES)
    run = 0

    def count(module: Any, arguments: Any, options: dict[str, Any]) -> None:
        nonlocal run
        run += len(arguments[0] if arguments else options["pixel_values"])

    prepare = build_image_processor(SCALES[-1], OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
    difference, tiles = 0.0, 0
    for picture in pictures:
        pixels = prepare(picture, return_tensors="pt")["pixel_values"]
        tower.config.reuse_flat_tiles = False
        expected = tower(pixels).last_hidden_state
        tower.config.reuse_flat_tiles = True
        handle = tower.backbone.register_forward_pre_hook(count, with_kwargs=True)
        features = tower(pixels).last_hidden_state
        handle.remove()
        tiles += TILES
        difference = max(difference, float((features - expected).abs().max()))
    return {
        "widest": max(round(max(p.size) / min(p.size), 2) for p in pictures),
        "tiles": tiles,
        "not_run": tiles - run,
        "share": round(1 - run / tiles, 3),
        "largest_difference": difference,
    }


if __name__ == "__main__":
    main()
