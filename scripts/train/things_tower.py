"""Trains the vision tower of the next embedded default: a small CLIP on captioned crops of photographs, with open_clip.

    python scripts/train/things_tower.py --photographs PHOTOGRAPHS/train --output playground/checkpoints/things_tower

PHOTOGRAPHS is what ``things_photographs.py --all`` writes. A crop of a photograph shows one to twelve named things
of 5 to 80 pixels, some of them tinted; its caption names them ("red umbrella, fox"). In one batch of three the crops
share few names or few colours, so that telling their captions apart needs the other property. Beside CLIP's loss
between crop and caption stands the same loss between region and phrase (as RegionCLIP has it): every patch token is
matched to the phrase of the thing that it shows, or to none. Two things measured worse: a ViT of the same cost as
image tower, and a transformer as text tower (the losses stand still for hundreds of steps until it tells texts apart;
the order of words says nothing here). The image tower is a ConvNeXt, as in open_clip's convolutional CLIPs, and the
text tower a bag of words.

The learning rate follows a cosine over ``--minutes`` of training time. A checkpoint is kept in the output folder; the
same command goes on from it. One thread trains and one process draws.
"""

import argparse
import copy
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image, ImageFilter
from torch.nn.functional import cross_entropy, normalize
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import CLIPImageProcessor, ConvNextConfig, ConvNextModel
from transformers.models.convnext.modeling_convnext import ConvNextLayer

from llava_s2.files import atomic_write
from llava_s2.synthetic.names import COLORS, NAMES, TINTED
from llava_s2.synthetic.sprites import STYLES, names_of, paste, sprite

SIDE, PATCH, WIDTH = 112, 16, 192
GRID = SIDE // PATCH
WORDS = [*NAMES, *COLORS]
PHRASES = [*NAMES, *(f"{color} {name}" for name in TINTED for color in COLORS)]
NUMBER = {phrase: number for number, phrase in enumerate(PHRASES)}
MOST = 12
MEAN, STD = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD


class Crops(Dataset):
    """Batches of drawn crops, each from the number of its step."""

    def __init__(self, photographs: Path, batch_size: int, steps: int = 1_000_000) -> None:
        self.batch_size, self.steps = batch_size, steps
        self.views: list[Image.Image] = []
        for path in sorted(photographs.glob("*.jpg")):
            image = Image.open(path).convert("RGB")
            for shorter in (150, 300, 600):  # a tile shows a whole photograph, or a fourth, or a sixteenth of it
                if shorter <= 1.5 * min(image.size):
                    factor = shorter / min(image.size)
                    self.views.append(image.resize([round(side * factor) for side in image.size]))

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Crops (B, 3, 112, 112) uint8; phrases of each (B, MOST), -1 where there are fewer; and for each patch
        (B, 49) the phrase that it shows, ``len(PHRASES)`` for none."""
        rng = np.random.default_rng([3, step])
        names, colors = list(NAMES), list(COLORS)
        restriction = int(rng.integers(6))
        if restriction == 0:
            names, colors = list(TINTED), rng.choice(colors, int(rng.integers(1, 4)), replace=False).tolist()
        elif restriction == 1:
            names = rng.choice(names, int(rng.integers(4, 16)), replace=False).tolist()
        drawn = [self.draw(names, colors, rng) for _ in range(self.batch_size)]
        images, phrases, regions = (torch.from_numpy(np.stack(values)) for values in zip(*drawn, strict=True))
        return images, phrases, regions

    def draw(
        self, names: list[str], colors: list[str], rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One crop, its phrases and its patches' phrases."""
        view = self.views[int(rng.integers(len(self.views)))]
        left, top = (int(rng.integers(0, extent - SIDE + 1)) for extent in view.size)
        image = view.crop((left, top, left + SIDE, top + SIDE))
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        phrases = np.full(MOST, -1)
        regions = np.full((GRID, GRID), len(PHRASES))
        best = np.zeros((GRID, GRID))
        if rng.random() < 0.85:  # small things, one in each of some of 4 x 4 places
            count, smallest, largest, cells = int(rng.integers(4, MOST + 1)), 5, 28, 4
        else:
            count, smallest, largest, cells = int(rng.integers(1, 3)), 28, 84, 2
        cell = SIDE / cells
        for i, place in enumerate(rng.permutation(cells**2)[:count].tolist()):
            among = TINTED if rng.random() < 0.25 and len(names) == len(NAMES) else names
            name = among[int(rng.integers(len(among)))]
            style = STYLES[int(rng.integers(len(STYLES)))]
            while name not in names_of(style):
                style = STYLES[int(rng.integers(len(STYLES)))]
            color = None
            if name in TINTED and rng.random() < 0.7:
                color = colors[int(rng.integers(len(colors)))]
            number = names_of(style)[name]
            # Log-uniform: as many things of 5 to 12 px (what a middle scale sees) as of 12 to 28.
            side = int(np.exp(rng.uniform(np.log(smallest), np.log(largest))))
            x = int((place % cells + rng.uniform(0.15, 0.85)) * cell)
            y = int((place // cells + rng.uniform(0.15, 0.85)) * cell)
            box = paste(image, sprite(style, number[int(rng.integers(len(number)))], color), x, y, side, rng)
            phrases[i] = NUMBER[f"{color} {name}" if color else name]
            covered = cover(box)
            share = covered / min(side, PATCH) ** 2
            chosen = (share >= 0.25) & (share > best)
            regions[chosen] = phrases[i]
            best = np.maximum(best, share)
        if rng.random() < 0.15:
            image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 0.7))))
        pixels = np.asarray(image, np.float32)
        if rng.random() < 0.5:
            pixels = (pixels - 128) * rng.uniform(0.75, 1.2) + 128 + rng.uniform(-25, 25)
        return np.clip(pixels, 0, 255).astype(np.uint8).transpose(2, 0, 1), phrases, regions.flatten()


def cover(box: tuple[int, int, int, int]) -> np.ndarray:
    """Pixels of the box in each patch (7, 7)."""
    edges = np.arange(GRID) * PATCH
    along = [
        np.clip(np.minimum(edges + PATCH, end) - np.maximum(edges, start), 0, None)
        for start, end in ((box[1], box[3]), (box[0], box[2]))
    ]
    return np.outer(*along)


def word_table() -> torch.Tensor:
    """The bag of words of every phrase (phrases + 1, words); the last row, for no phrase, is empty."""
    table = torch.zeros(len(PHRASES) + 1, len(WORDS))
    for row, phrase in enumerate(PHRASES):
        for word in phrase.split():
            table[row, WORDS.index(word)] = 1
    return table


class Float32Conv2d(torch.nn.Conv2d):
    """A convolution that autocast leaves in float32: a depthwise one's backward is three times slower in bfloat16."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Convolves (B, C, H, W) in float32."""
        with torch.autocast("cpu", enabled=False):
            return super().forward(input.float())


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
        for layer in list(self.visual.modules()):
            if isinstance(layer, ConvNextLayer):
                width = layer.dwconv.out_channels
                layer.dwconv = Float32Conv2d(width, width, 7, padding=3, groups=width)
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
    parser.add_argument("--photographs", type=Path, required=True, help="folder of JPEG files to cut crops from")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=45, help="length of the cosine schedule")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    args = parser.parse_args()

    torch.manual_seed(0)
    torch.set_num_threads(1)
    clip = SmallClip().train().to(memory_format=torch.channels_last)
    table = word_table()
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
    )
    contrastive = open_clip.ClipLoss()
    args.output.mkdir(parents=True, exist_ok=True)
    CLIPImageProcessor(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, image_mean=MEAN, image_std=STD
    ).save_pretrained(args.output)
    checkpoint = args.output / "checkpoint.pt"
    step, before = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        clip.load_state_dict(state["clip"])
        optimizer.load_state_dict(state["optimizer"])
        step, before = state["step"], state["seconds"]
    first = step

    def upcoming() -> Iterator[int]:
        yield from range(first, 10**6)

    loader = iter(DataLoader(Crops(args.photographs, args.batch_size), None, sampler=upcoming(), num_workers=1))
    recent: list[tuple[float, float]] = []
    started, seconds = time.monotonic(), before
    with (args.output / "training_log.jsonl").open("a") as log, tqdm(unit="step", initial=step) as bar:
        while (progress := seconds / (60 * args.minutes)) < 1:
            cosine = 0.5 * (1 + math.cos(math.pi * progress))
            rate = args.lr * min(1, (step + 1) / 100) * (0.01 + 0.99 * cosine)
            for group in optimizer.param_groups:
                group["lr"] = rate
            images, phrases, regions = next(loader)
            images = ((images.float() - mean) / std).contiguous(memory_format=torch.channels_last)
            texts = torch.cat([normalize(table[phrases].sum(1), p=1, dim=-1), table[:-1]])
            with torch.autocast("cpu", torch.bfloat16):
                crops, patches, vectors = clip(images, texts)
            scale = clip.logit_scale.exp()
            clip_loss = contrastive(crops, vectors[: len(images)], scale)
            known = torch.cat([vectors[len(images) :], normalize(clip.nothing, dim=-1)])
            with torch.autocast("cpu", torch.bfloat16):
                likeness = patches.flatten(0, 1) @ known.T
            region_loss = cross_entropy(scale * likeness.float(), regions.flatten(), weights)
            optimizer.zero_grad(set_to_none=True)
            (clip_loss + region_loss).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            with torch.no_grad():
                clip.logit_scale.clamp_(0, np.log(100))
            bar.update()
            step += 1
            recent.append((clip_loss.item(), region_loss.item()))
            seconds = before + time.monotonic() - started
            if step % 50 == 0:
                means = np.mean(recent, axis=0).round(4).tolist()
                recent.clear()
                row = {"step": step, "contrastive": means[0], "region": means[1], "lr": float(f"{rate:.3g}")}
                log.write(json.dumps({**row, "seconds": round(seconds, 1)}) + "\n")
                log.flush()
                bar.set_postfix(contrastive=means[0], region=means[1])
            if step % 250 == 0 or seconds >= 60 * args.minutes:
                copy.deepcopy(clip.visual).half().save_pretrained(args.output)
                state = {"clip": clip.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
                with atomic_write(checkpoint) as partial:
                    torch.save({**state, "seconds": seconds}, partial)


if __name__ == "__main__":
    main()
