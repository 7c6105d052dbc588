"""Trains the vision tower of the embedded default: a small CLIP on captioned crops of photographs, with open_clip.

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
from torch.nn.functional import avg_pool2d, normalize
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import CLIPImageProcessor, ConvNextConfig, ConvNextModel
from transformers.models.convnext.modeling_convnext import ConvNextLayer

from llava_s2.files import atomic_write
from llava_s2.synthetic.sprites import STYLES, names_of, paste, sprite
from llava_s2.synthetic.thing_names import COLORS, NAMES, TINTED

SIDE, PATCH, WIDTH = 112, 16, 192
GRID = SIDE // PATCH
WORDS = [*NAMES, *COLORS]
PHRASES = [*NAMES, *(f"{color} {name}" for name in TINTED for color in COLORS)]
NUMBER = {phrase: number for number, phrase in enumerate(PHRASES)}
MOST = 12
# Widths of the windows of patches whose mean has to tell what they show, and the weight of those that show nothing:
# most of the small ones do.
WINDOWS = {1: 0.1, 2: 0.2, 4: 0.5}
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

    def __getitem__(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Crops (B, 3, 112, 112) uint8; phrases of each (B, MOST), -1 where there are fewer; the area of each thing
        (B, MOST) and what each patch covers of it (B, MOST, 7, 7), in pixels."""
        rng = np.random.default_rng([3, step])
        names, colors = list(NAMES), list(COLORS)
        restriction = int(rng.integers(6))
        if restriction == 0:
            names, colors = list(TINTED), rng.choice(colors, int(rng.integers(1, 4)), replace=False).tolist()
        elif restriction == 1:
            names = rng.choice(names, int(rng.integers(4, 16)), replace=False).tolist()
        drawn = [self.draw(names, colors, rng) for _ in range(self.batch_size)]
        images, phrases, areas, covered = (torch.from_numpy(np.stack(values)) for values in zip(*drawn, strict=True))
        return images, phrases, areas, covered

    def draw(
        self, names: list[str], colors: list[str], rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """One crop, its phrases, and the things' areas and what patches cover of them."""
        view = self.views[int(rng.integers(len(self.views)))]
        left, top = (int(rng.integers(0, extent - SIDE + 1)) for extent in view.size)
        image = view.crop((left, top, left + SIDE, top + SIDE))
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        phrases = np.full(MOST, -1)
        areas, covered = np.ones(MOST, np.float32), np.zeros((MOST, GRID, GRID), np.float32)
        if rng.random() < 0.85:  # small things, one in each of some of 4 x 4 places
            count, smallest, largest, cells = int(rng.integers(2, MOST + 1)), 5, 28, 4
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
            areas[i] = (box[2] - box[0]) * (box[3] - box[1])
            covered[i] = cover(box)
        if rng.random() < 0.15:
            image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 0.7))))
        pixels = np.asarray(image, np.float32)
        if rng.random() < 0.5:
            pixels = (pixels - 128) * rng.uniform(0.75, 1.2) + 128 + rng.uniform(-25, 25)
        return np.clip(pixels, 0, 255).astype(np.uint8).transpose(2, 0, 1), phrases, areas, covered


def cover(box: tuple[int, int, int, int]) -> np.ndarray:
    """Pixels of the box in each patch (7, 7)."""
    edges = np.arange(GRID) * PATCH
    along = [
        np.clip(np.minimum(edges + PATCH, end) - np.maximum(edges, start), 0, None)
        for start, end in ((box[1], box[3]), (box[0], box[2]))
    ]
    return np.outer(*along)


def window_targets(phrases: torch.Tensor, areas: torch.Tensor, covered: torch.Tensor, width: int) -> torch.Tensor:
    """What each window of ``width`` x ``width`` patches shows: shares of the phrases (B, windows, phrases + 1).

    A thing counts with the part of it that stands in the window, or, where it is larger than the window, with the part
    of the window that it fills; below a fourth it does not count. The last phrase, for none, is what is left.
    """
    pixels = avg_pool2d(covered, width, stride=1).flatten(2) * width**2
    parts = pixels / areas.clamp(max=float(width * PATCH) ** 2)[..., None]
    parts = torch.where((parts < 0.25) | (phrases < 0)[..., None], 0.0, parts).transpose(1, 2)
    shown = torch.zeros(*parts.shape[:2], len(PHRASES) + 1)
    shown.scatter_add_(2, phrases.clamp(min=0)[:, None].expand(-1, parts.shape[1], -1), parts)
    shown[..., -1] = (shown.sum(-1) == 0).float()
    return shown / shown.sum(-1, keepdim=True)


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
        # Nothing but a linear layer stands between a mean of tokens and its phrase: such means are all that S2 keeps of
        # a larger scale.
        self.project = torch.nn.Linear(WIDTH, WIDTH)
        self.text = torch.nn.Linear(len(WORDS), WIDTH, bias=False)
        self.nothing = torch.nn.Parameter(torch.randn(1, WIDTH) * 0.02)
        self.logit_scale = torch.nn.Parameter(torch.full((1 + len(WINDOWS),), math.log(1 / 0.07)))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
        """Unit vectors of crops (B, D) and of each width's windows (B, windows, D), and the tokens (B, C, 7, 7)."""
        tokens = self.visual(images).last_hidden_state
        means = [avg_pool2d(tokens, width, stride=1).flatten(2).transpose(1, 2) for width in (GRID, *WINDOWS)]
        crops, *windows = (normalize(self.project(mean).float(), dim=-1) for mean in means)
        return crops[:, 0], windows, tokens


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
    recent: list[list[float]] = []
    started, seconds = time.monotonic(), before
    with (args.output / "training_log.jsonl").open("a") as log, tqdm(unit="step", initial=step) as bar:
        while (progress := seconds / (60 * args.minutes)) < 1:
            cosine = 0.5 * (1 + math.cos(math.pi * progress))
            rate = args.lr * min(1, (step + 1) / 100) * (0.01 + 0.99 * cosine)
            for group in optimizer.param_groups:
                group["lr"] = rate
            images, phrases, areas, covered = next(loader)
            images = ((images.float() - mean) / std).contiguous(memory_format=torch.channels_last)
            texts = torch.cat([normalize(table[phrases].sum(1), p=1, dim=-1), table[:-1]])
            with torch.autocast("cpu", torch.bfloat16):
                crops, windows, tokens = clip(images)
            captions, known = normalize(clip.text(texts), dim=-1).split([len(images), len(PHRASES)])
            known = torch.cat([known, normalize(clip.nothing, dim=-1)])
            scales = clip.logit_scale.exp()
            losses = [contrastive(crops, captions, scales[0])]
            for (width, weight), vectors, scale in zip(WINDOWS.items(), windows, scales[1:], strict=True):
                shown = window_targets(phrases, areas, covered, width)
                with torch.autocast("cpu", torch.bfloat16):
                    likeness = vectors @ known.T
                missed = -(shown * (scale * likeness.float()).log_softmax(-1)).sum(-1)
                weights = torch.where(shown[..., -1] == 1, weight, 1.0)
                losses.append((weights * missed).sum() / weights.sum())
            # The projector starts from tokens of size one.
            size = tokens.float().square().mean().log().square()
            optimizer.zero_grad(set_to_none=True)
            (sum(losses) + 0.02 * size).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            with torch.no_grad():
                clip.logit_scale.clamp_(0, np.log(100))
            bar.update()
            step += 1
            recent.append([loss.item() for loss in losses])
            seconds = before + time.monotonic() - started
            if step % 50 == 0:
                means = np.mean(recent, axis=0).round(4).tolist()
                recent.clear()
                row = {"step": step, "contrastive": means[0], "windows": means[1:], "lr": float(f"{rate:.3g}")}
                log.write(json.dumps({**row, "seconds": round(seconds, 1)}) + "\n")
                log.flush()
                bar.set_postfix(contrastive=means[0], windows=means[1:])
            if step % 250 == 0 or seconds >= 60 * args.minutes:
                copy.deepcopy(clip.visual).half().save_pretrained(args.output)
                state = {"clip": clip.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
                with atomic_write(checkpoint) as partial:
                    torch.save({**state, "seconds": seconds}, partial)


if __name__ == "__main__":
    main()
