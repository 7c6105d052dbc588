"""Trains a projector of the embedded default: a visual token becomes what the language model reads as what it shows.

    python scripts/train/embedded_projector.py --scales 112,224,336 --words playground/checkpoints/words.safetensors \\
        --output llava_s2/model/embedded/projector_s2.safetensors

Every visual token of a drawn image is matched (mean squared error) to the vectors that embedded_words.py found,
blended by the share of each object that the token covers. No language model is run, so minutes do what hours of stage 1
on captions alone would. Both projectors get the same images, targets and steps.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from llava_s2.data.scenes import COLORS, KINDS, Scene, SceneConfig, make_scene
from llava_s2.model.assemble import assemble

CONFIG = SceneConfig(object_side=(14, 40), objects=(3, 6))
GRID = 7


def covered_share(scene: Scene) -> list[np.ndarray]:
    """For each object, the share of it that each visual token covers: (7, 7), summing to 1 (less at the border)."""
    side = CONFIG.side / GRID
    edges = np.arange(GRID) * side
    shares = []
    for item in scene.objects:
        along = [
            np.clip(np.minimum(edges + side, start + item.side) - np.maximum(edges, start), 0, None) / item.side
            for start in (item.y - item.side // 2, item.x - item.side // 2)
        ]
        shares.append(np.outer(*along))
    return shares


@torch.no_grad()
def standardize(projector: Any, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
    """Has the fresh projector take features and give embeddings of the scale that they have."""
    first, second = projector.linear_1, projector.linear_2
    flat = inputs.flatten(0, 1).float()
    first.weight /= flat.std(0) + 1e-3
    first.bias -= first.weight @ flat.mean(0)
    second.weight *= outputs.float().std()
    second.bias.copy_(outputs.flatten(0, 1).float().mean(0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scales", required=True, help="112 or 112,224,336")
    parser.add_argument("--output", type=Path, required=True, help="file to write")
    parser.add_argument("--words", type=Path, required=True, help="what embedded_words.py wrote")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=12)
    args = parser.parse_args()

    torch.manual_seed(0)
    scales = [int(side) for side in args.scales.split(",")]
    model, processor = assemble("embedded", "embedded", scales, feature_layer=-1, template="chatml")
    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    words = load_file(args.words)
    colors = dict(zip(COLORS, words["colors"], strict=True))
    kinds = dict(zip(KINDS, words["kinds"], strict=True))
    nothing = words["nothing"]
    features, targets, weights = [], [], []
    for seed in tqdm(range(args.images), desc="images", unit="image"):
        scene = make_scene("train", 500_000 + seed, CONFIG)
        pixels = processor.image_processor(scene.image, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            features.append(tower(pixels).last_hidden_state[0].to(torch.bfloat16))
        target, weight = nothing.repeat(GRID * GRID, 1), torch.full((GRID * GRID,), 0.03)
        for item, share in zip(scene.objects, covered_share(scene), strict=True):
            part = torch.from_numpy(share).flatten()[:, None].float().clamp(max=1)
            target = target + part * (colors[item.color] + kinds[item.kind] - nothing)
            weight = weight + part[:, 0]
        targets.append(target.to(torch.bfloat16))
        weights.append(weight)
    inputs, outputs, weight = torch.stack(features), torch.stack(targets), torch.stack(weights)

    projector.requires_grad_(True)
    standardize(projector, inputs, outputs)
    optimizer = torch.optim.AdamW(projector.parameters(), lr=2e-3, weight_decay=0.01)
    scale = (outputs.float() - nothing).pow(2).mean(-1).mul(weight).sum() / weight.sum()
    batch = 32
    steps = args.epochs * (len(inputs) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps, pct_start=0.05)
    with tqdm(total=steps, unit="step") as bar:
        for _ in range(args.epochs):
            order = torch.randperm(len(inputs))
            for start in range(0, len(order) - batch + 1, batch):
                chosen = order[start : start + batch]
                error = (projector(inputs[chosen].float()) - outputs[chosen].float()).pow(2).mean(-1)
                loss = (error * weight[chosen]).sum() / weight[chosen].sum() / scale
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
                bar.set_postfix(unexplained=f"{loss.item():.3f}")

    args.output.parent.mkdir(parents=True, exist_ok=True)
    tensors = {f"model.multi_modal_projector.{name}": value for name, value in projector.state_dict().items()}
    save_file(tensors, args.output)


if __name__ == "__main__":
    main()
