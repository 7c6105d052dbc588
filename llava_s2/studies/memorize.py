"""``llava-s2 study memorize``: a network learns to tell every image from every other (table 3's first column).

Each image is a class of its own (Wu et al. 2018): a feature of 128 numbers, of unit length, is compared with one such
vector for every image, and the softmax over all of them is trained. The lower its loss, the more the network holds.
"""

import argparse
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llava_s2.errors import InputError
from llava_s2.studies.feature_cache import cropped
from llava_s2.studies.image_sets import check_images, load_image_sets
from llava_s2.studies.study_report import StudyReport
from llava_s2.studies.trainable_vit import S2Vit, VitSize, augmented, check_vit, device, in_memory, normalised
from llava_s2.studies.training_loop import checkpoint_file, train

_WIDTH = 128
_TEMPERATURE = 0.07
_MOST_IMAGES = 131_072  # of a full softmax, and of images in memory


class InstanceClassifier(nn.Module):
    """Logits of every image's own class."""

    def __init__(self, vit: S2Vit, images: int) -> None:
        super().__init__()
        self.vit = vit
        self.project = nn.Linear(vit.width, _WIDTH)
        self.instances = nn.Parameter(torch.randn(images, _WIDTH))

    def forward(self, images: Tensor) -> Tensor:
        features = F.normalize(self.project(self.vit(images)), dim=1)
        return features @ F.normalize(self.instances, dim=1).T / _TEMPERATURE


def run(args: argparse.Namespace) -> None:
    """Runs the study; see ``llava-s2 study memorize --help``."""
    base_size, base = check_vit(args)
    images = load_image_sets(args.data, args.val_labels)["train"].first(args.limit)
    if not 1 < len(images) <= _MOST_IMAGES:
        raise InputError(f"{args.data}: {len(images)} images; from 2 to {_MOST_IMAGES} can be told apart, see --limit")
    check_images(images)
    image_source = cropped(images, args.crop)
    report = StudyReport(
        args.output,
        "memorize",
        {
            "data": args.data,
            "images": len(images),
            "base ViT": f"width {args.width}, depth {args.depth}, patch {args.patch}, tiles of {base}²",
            "training": f"{args.epochs} epochs, AdamW {args.rate}, batches of {args.batch_size}, crops and flips",
            "paper": "Base 1.223, Large 1.206, Base-S2 1.206 on ImageNet (another number of images: not comparable)",
            "content": image_source.key,
        },
    )
    pixels = in_memory(image_source, base)
    rows = [(base_size, scales) for scales in args.scales] + [(base_size.large, (base,))]

    def compute(size: VitSize, scales: tuple[int, ...], seed: int) -> dict[str, Any]:
        torch.manual_seed(seed)
        model = InstanceClassifier(S2Vit(size, base, args.patch, list(scales)), len(pixels)).to(device())

        def loss(index: Tensor) -> Tensor:
            return F.cross_entropy(model(augmented(normalised(pixels[index]))), index.to(device()))

        file = checkpoint_file(args.cache, "memorize", size.name, scales, seed, report.setting)
        losses = train(
            model, loss, len(pixels), epochs=args.epochs, rate=args.rate, batch=args.batch_size, seed=seed, file=file,
            name=f"memorize {size.name}",
        )  # fmt: skip
        file.unlink(missing_ok=True)
        return {"loss of last epoch": losses[-1], "parameters": sum(p.numel() for p in model.vit.parameters())}

    for size, scales in rows:
        for seed in range(args.seed, args.seed + args.seeds):
            key = {"model": size.name, "scales": ", ".join(f"{side}²" for side in scales), "seed": seed}
            report.row(key, partial(compute, size, scales, seed))
    report.finish("loss of last epoch", "model")
