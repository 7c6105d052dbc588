"""Trains the vision tower of the embedded default: a small CLIP on captioned crops of synthetic scenes, with open_clip.

    python scripts/train/embedded_tower.py --output playground/checkpoints/tower

A crop shows two to five objects; its caption names them ("a red star, a white cup"). A batch shares few colours or few
kinds, so that telling its captions apart needs the other property: hard negatives, without which shape is learnt long
after colour. Beside CLIP's loss between crop and caption stands the same loss between region and phrase (as RegionCLIP
has it): every patch token is matched to the phrase of the object it shows, or to none. It is what makes minutes on two
cores enough. Two things measured worse: a ViT of the same cost as image tower (after 105,000 crops it had learnt the
colours and no shape at all), and a transformer as text tower (the losses stand still for hundreds of steps until it
tells texts apart; the order of words says nothing here). The image tower is a ConvNeXt, as in open_clip's convolutional
CLIPs, and the text tower a bag of words.
"""

import argparse
import copy
import json
import time
from pathlib import Path

import numpy as np
import open_clip
import torch
from torch.nn.functional import cross_entropy, normalize
from tqdm import tqdm
from transformers import CLIPImageProcessor, ConvNextConfig, ConvNextModel

from llava_s2.data.scenes import COLORS, KINDS, SceneConfig, SceneObject, draw_scene

SIDE, PATCH, WIDTH = 112, 16, 192
WORDS = [*COLORS, *KINDS]
PHRASES = [SceneObject(kind, color, 0, 0, 0).phrase for kind in KINDS for color in COLORS]
CROP = SceneConfig(side=SIDE, object_side=(7, 28), objects=(2, 5), cells=3)
MEAN, STD = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD


def draw_group(seed: int, count: int) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Draws crops that share few colours or few kinds.

    Returns:
        Crops (count, 3, 112, 112) uint8, their captions, and for each patch (count, 7, 7) int64 the index of the phrase
        of the object it shows, ``len(PHRASES)`` where it shows none.
    """
    rng = np.random.default_rng([3, seed])
    colors, kinds = list(COLORS), list(KINDS)
    restriction = rng.integers(3)
    if restriction == 0:
        colors = rng.choice(colors, size=rng.integers(1, 4), replace=False).tolist()
    elif restriction == 1:
        kinds = rng.choice(kinds, size=rng.integers(2, 5), replace=False).tolist()
    images, captions, regions = [], [], []
    for _ in range(count):
        objects = []
        cell = SIDE // CROP.cells
        for place in rng.permutation(CROP.cells**2)[: rng.integers(CROP.objects[0], CROP.objects[1] + 1)].tolist():
            # Log-uniform: as many objects of 7 to 13 px (what the middle scale sees) as of 14 to 28.
            side = int(np.exp(rng.uniform(np.log(CROP.object_side[0]), np.log(CROP.object_side[1]))))
            x, y = (int(v) for v in rng.integers(0, cell - side + 1, size=2) + side // 2)
            objects.append(
                SceneObject(
                    kinds[rng.integers(len(kinds))],
                    colors[rng.integers(len(colors))],
                    place % CROP.cells * cell + x,
                    place // CROP.cells * cell + y,
                    side,
                )
            )
        scene = draw_scene(objects, CROP, rng)
        images.append(np.asarray(scene.image).transpose(2, 0, 1))
        captions.append(", ".join(item.phrase for item in scene.objects))
        regions.append(label_patches(objects))
    return np.stack(images), captions, np.stack(regions)


def count_words(texts: list[str]) -> torch.Tensor:
    """How often each of ``WORDS`` stands in each text, as a share: (T, words) float32."""
    counts = torch.tensor([[text.replace(",", "").split().count(word) for word in WORDS] for text in texts])
    return counts / counts.sum(1, keepdim=True)


def label_patches(objects: list[SceneObject]) -> np.ndarray:
    """Phrase index for each patch (7, 7): the object whose box covers most of it, and at least a quarter of either."""
    edges = np.arange(SIDE // PATCH) * PATCH
    labels = np.full((len(edges), len(edges)), len(PHRASES))
    best = np.zeros(labels.shape)
    for item in objects:
        covered = [
            np.clip(np.minimum(edges + PATCH, start + item.side) - np.maximum(edges, start), 0, None)
            for start in (item.y - item.side // 2, item.x - item.side // 2)
        ]
        share = np.outer(*covered) / min(item.side, PATCH) ** 2
        labels[(share >= 0.25) & (share > best)] = PHRASES.index(item.phrase)
        best = np.maximum(best, share)
    return labels


class SmallClip(torch.nn.Module):
    """transformers' ConvNextModel beside a bag of words, with one projection for regions and whole crops."""

    def __init__(self) -> None:
        super().__init__()
        config = ConvNextConfig(
            image_size=SIDE,
            patch_size=4,
            num_stages=3,
            hidden_sizes=[48, 96, WIDTH],
            depths=[2, 2, 3],
            layer_scale_init_value=0.0,  # no layer scale, which slows down a short training
        )
        self.visual = ConvNextModel(config)
        for parameter in self.visual.parameters():
            if parameter.ndim >= 2:  # transformers' 0.02 is for long trainings
                torch.nn.init.kaiming_normal_(parameter, nonlinearity="linear")
        self.norm = torch.nn.LayerNorm(WIDTH)
        self.project = torch.nn.Linear(WIDTH, WIDTH, bias=False)
        self.text = torch.nn.Linear(len(WORDS), WIDTH, bias=False)
        self.nothing = torch.nn.Parameter(torch.randn(1, WIDTH) * 0.02)
        self.logit_scale = torch.nn.Parameter(torch.tensor(np.log(1 / 0.07)).float())

    def forward(self, images: torch.Tensor, texts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Unit vectors of crops (B, D), patches (B, 49, D) and texts (T, D), these given as word counts (T, words)."""
        patches = self.norm(self.visual(images).last_hidden_state.flatten(2).transpose(1, 2))
        vectors = self.project(patches.mean(1)), self.project(patches), self.text(texts)
        crops, patches, texts = (normalize(x.float(), dim=-1) for x in vectors)
        return crops, patches, texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=15, help="length of the cosine schedule")
    parser.add_argument("--groups", type=int, default=2000, help="groups (batches) of crops drawn")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument(
        "--bf16", action="store_true", help="autocast; faster only where the processor has bf16 products"
    )
    args = parser.parse_args()

    torch.manual_seed(0)
    clip = SmallClip().train()
    groups = [draw_group(seed, args.batch_size) for seed in tqdm(range(args.groups), desc="drawing", unit="batch")]
    texts_of = [count_words(captions) for _, captions, _ in groups]
    phrases = count_words(PHRASES)
    # Most patches show nothing.
    weights = torch.cat([torch.ones(len(PHRASES)), torch.tensor([0.1])])

    mean, std = (torch.tensor(v).view(1, 3, 1, 1) * 255 for v in (MEAN, STD))
    parameters = list(clip.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.05},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.98),
        fused=True,
    )
    contrastive = open_clip.ClipLoss()
    args.output.mkdir(parents=True, exist_ok=True)
    shuffle = np.random.default_rng(1)
    recent: list[tuple[float, float]] = []
    started, step, progress = time.monotonic(), 0, 0.0
    with (args.output / "log.jsonl").open("w") as log, tqdm(unit="step") as bar:
        while progress < 1:
            if step % args.groups == 0:
                order = shuffle.permutation(args.groups)
            index = order[step % args.groups]
            rate = args.lr * min(1, (step + 1) / 50) * 0.5 * (1 + np.cos(np.pi * progress))
            for group in optimizer.param_groups:
                group["lr"] = rate
            images, regions = torch.from_numpy(groups[index][0]), torch.from_numpy(groups[index][2])
            # The names do not change in a mirror or upside down.
            flips = [dim for dim in (-2, -1) if shuffle.random() < 0.5]
            images, regions = (images.flip(flips).float() - mean) / std, regions.flip(flips)
            with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
                crops, patches, texts = clip(images, torch.cat([texts_of[index], phrases]))
            scale = clip.logit_scale.exp()
            clip_loss = contrastive(crops, texts[: len(images)], scale)
            names = torch.cat([texts[len(images) :], normalize(clip.nothing, dim=-1)])
            region_loss = cross_entropy(scale * (patches @ names.T).flatten(0, 1), regions.flatten(), weights)
            loss = clip_loss + region_loss
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            with torch.no_grad():
                clip.logit_scale.clamp_(0, np.log(100))
            bar.update()
            step += 1
            recent.append((clip_loss.item(), region_loss.item()))
            progress = (time.monotonic() - started) / (60 * args.minutes)
            if step % 50 == 0:
                means = np.mean(recent, axis=0).round(4).tolist()
                recent.clear()
                row = {
                    "step": step,
                    "contrastive": means[0],
                    "region": means[1],
                    "lr": float(f"{rate:.3g}"),
                    "seconds": round(time.monotonic() - started, 1),
                }
                bar.set_postfix(contrastive=row["contrastive"], region=row["region"])
                log.write(json.dumps(row) + "\n")
                log.flush()
            if step % 1000 == 0 or progress >= 1:
                copy.deepcopy(clip.visual).half().save_pretrained(args.output)
    CLIPImageProcessor(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=MEAN,
        image_std=STD,
    ).save_pretrained(args.output)


if __name__ == "__main__":
    main()
