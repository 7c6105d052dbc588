"""Draws photographs with small named things and keeps the embedded vision tower's visual tokens of them.

    python scripts/train/things_features.py --tower playground/checkpoints/things_tower --output features.pt

The file holds, for ``train`` and ``test``, ``features`` (images, 49, 576) bfloat16 at 112², 224² and 448² (the first
192 channels are those of 112² alone) and ``scenes`` without their pixels. ``things_projector.py`` and
``things_reader.py`` train on it.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from llava_s2.model.assemble import load_image_processor
from llava_s2.model.embedded import FEATURE_LAYER, SCALES
from llava_s2.s2 import S2VisionModel
from llava_s2.s2.packed_linear import pack_frozen
from llava_s2.synthetic.scenes import Scene, SceneConfig, Split, make_scene
from llava_s2.towers.load_tower import load_vision_backbone, load_vision_config

SMALL = SceneConfig(side=(900, 1400), things=(3, 9), empty=0.05, repeated=0.15)
CONFIGS: dict[Split, list[SceneConfig]] = {
    # Every third image has things of many sizes.
    "train": [SMALL, SMALL, replace(SMALL, thing_share=(12 / 448, 36 / 448))],
    "test": [SceneConfig(side=(1000, 1400))],
}


class Drawn(Dataset):
    """A split's normalized pixels (1, 3, 448, 448) and scenes without theirs."""

    def __init__(self, split: Split, count: int, first_seed: int, processor: Any) -> None:
        self.split, self.count, self.first_seed, self.processor = split, count, first_seed, processor

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> tuple[torch.Tensor, Scene]:
        configs = CONFIGS[self.split]
        scene = make_scene(self.split, self.first_seed + number, configs[number % len(configs)])
        pixels = self.processor(scene.image, return_tensors="pt")["pixel_values"]
        return pixels, replace(scene, image=Image.new("1", scene.image.size))


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tower", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--first-seed", type=int, default=700_000)
    args = parser.parse_args()

    processor = load_image_processor(str(args.tower), list(SCALES))
    backbone = load_vision_backbone(str(args.tower), load_vision_config(str(args.tower)), torch.float32)
    tower = pack_frozen(S2VisionModel.wrap(backbone, list(SCALES), feature_layer=FEATURE_LAYER).eval())
    found = {}
    counts: dict[Split, int] = {"train": args.images, "test": min(240, args.images)}
    for split, count in counts.items():
        drawn = DataLoader(Drawn(split, count, args.first_seed, processor), None, num_workers=1)
        features, scenes = [], []
        for pixels, scene in tqdm(drawn, desc=split, unit="image"):
            features.append(tower(pixels).last_hidden_state[0].to(torch.bfloat16))
            scenes.append(scene)
        found[split] = {"features": torch.stack(features), "scenes": scenes}
    torch.save(found, args.output)


if __name__ == "__main__":
    main()
