"""``llava-s2 study pretrain``: S2 inside pre-training, and only after it (table 4).

A ViT is pre-trained to classify, with one scale or with several; then it is frozen, and a linear classifier is trained
on its features, with one scale or with several.
"""

import argparse
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llava_s2.files import atomic_write
from llava_s2.studies.feature_cache import Features, cropped
from llava_s2.studies.linear_probe import train_in_closed_form
from llava_s2.studies.study_data import image_splits
from llava_s2.studies.study_report import StudyReport, wilson_interval
from llava_s2.studies.trainable_vit import (
    S2Vit,
    VitSize,
    augmented,
    check_vit,
    device,
    in_memory,
    normalised,
    outputs,
)
from llava_s2.studies.training_loop import checkpoint_file, train


class Classifier(nn.Module):
    """A ViT with one linear layer, as it is pre-trained."""

    def __init__(self, vit: S2Vit, classes: int) -> None:
        super().__init__()
        self.vit = vit
        self.head = nn.Linear(vit.width, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.vit(images))


def run(args: argparse.Namespace) -> None:
    """Runs the study; see ``llava-s2 study pretrain --help``."""
    base_size, base = check_vit(args)
    sets = image_splits(args)
    image_source = {name: cropped(images, args.crop) for name, images in sets.items()}
    classes = len(sets["train"].classes)
    report = StudyReport(
        args.output,
        "pretrain",
        {
            "data": args.data,
            "images": f"{len(sets['train'])} to train, {len(sets['val'])} to test, {classes} classes",
            "base ViT": f"width {args.width}, depth {args.depth}, patch {args.patch}, tiles of {base}²",
            "training": f"{args.epochs} epochs, AdamW {args.rate}, batches of {args.batch_size}, crops and flips",
            "paper": "ViT: Base 80.3, Large 81.6, Base-S2 after 81.1, Base-S2 before 82.4 (ImageNet-21k to -1k)",
            "content": " ".join(found.key for found in image_source.values()),
        },
    )
    pixels = {name: in_memory(found, base) for name, found in image_source.items()}
    labels = {name: torch.tensor([item.label for item in images.items]) for name, images in sets.items()}
    most: tuple[int, ...] = max(args.scales, key=lambda scales: len(scales))
    single, multi = [base], list(most)

    def pretrained(size: VitSize, scales: list[int], seed: int) -> S2Vit:
        file = checkpoint_file(args.cache, "pretrain", size.name, scales, seed, report.setting)
        torch.manual_seed(seed)
        model = Classifier(S2Vit(size, base, args.patch, scales), classes).to(device())
        done = file.with_suffix(".done.pt")
        if done.exists():
            model.load_state_dict(torch.load(done, map_location=device(), weights_only=True))
            return model.vit.eval()

        def loss(index: Tensor) -> Tensor:
            logits = model(augmented(normalised(pixels["train"][index])))
            return F.cross_entropy(logits, labels["train"][index].to(device()))

        train(
            model, loss, len(pixels["train"]), epochs=args.epochs, rate=args.rate, batch=args.batch_size, seed=seed,
            file=file, weight_decay=0.05, name=f"pretrain {size.name}, {scales}",
        )  # fmt: skip
        with atomic_write(done) as partial_file:
            torch.save(model.state_dict(), partial_file)
        file.unlink(missing_ok=True)
        return model.vit

    def compute(size: VitSize, before: list[int], after: list[int], seed: int) -> dict[str, Any]:
        vit = pretrained(size, before, seed)
        vit.scales = after
        features = {name: Features.of(outputs(vit, images)) for name, images in pixels.items()}
        probe, _ = train_in_closed_form(features["train"], labels["train"], classes, seed=seed)
        scores = probe.score(features["val"], labels["val"])
        low, high = wilson_interval(int(scores.right.sum()), len(scores.right))
        return {
            "accuracy %": 100 * scores.accuracy,
            "95 % interval": f"{100 * low:.1f}-{100 * high:.1f}",
            "train loss": probe.score(features["train"], labels["train"]).loss,
        }

    rows = (
        ("base", base_size, single, single),
        ("large", base_size.large, single, single),
        ("base, S2 after", base_size, single, multi),
        ("base, S2 before", base_size, multi, multi),
    )
    for name, size, before, after in rows:
        for seed in range(args.seed, args.seed + args.seeds):
            key = {"model": name, "scales": ", ".join(f"{side}²" for side in after), "seed": seed}
            report.row(key, partial(compute, size, before, after, seed))
    report.finish("accuracy %", "model")
