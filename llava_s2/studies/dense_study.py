"""What segmentation and depth share: a head trained on the frozen multi-scale map, and its score at the files' size."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llava_s2.studies.dense_backbone import S2Backbone
from llava_s2.studies.dense_data import DenseItem, DenseSets, squares
from llava_s2.studies.feature_cache import Extractor, Features, ImageSource, ScaleSetting
from llava_s2.studies.study_report import StudyReport
from llava_s2.studies.study_towers import StudyTower, check_tower, load_tower, weights_key
from llava_s2.studies.training_loop import checkpoint_file, train


@dataclass(frozen=True)
class DenseTask:
    """What tells one dense study from another.

    Attributes:
        name: of the study. score: the row's entry that is plotted.
        head: a decoder on maps of so many channels, which gives (B, K, h, w).
        loss: of predictions (B, K, h, w) and the truth (B, h, w).
        decode: predictions (K, H, W) at the file's size to what the metric takes.
        metric: a new metric with `update` and `result`.
        paper: the paper's score of a tower and a setting, where the setting is the paper's.
        stock: builds transformers' own model around an `S2Backbone`, and gives its loss and prediction functions.
    """

    name: str
    score: str
    head: Callable[[int], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    decode: Callable[[Tensor], np.ndarray]
    metric: Callable[[], Any]
    paper: Callable[[str, ScaleSetting], float | None]
    stock: Callable[[S2Backbone], "StockModel"] | None = None


@dataclass(frozen=True)
class StockModel:
    """A model of transformers: `loss(images, truth)`, and `predict(images)` (B, K, h, w)."""

    model: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    predict: Callable[[Tensor], Tensor]


def run_dense(args: argparse.Namespace, task: DenseTask, sets: DenseSets, setting_of_report: dict[str, Any]) -> None:
    """Trains a head for every tower and setting of the command, and reports its score on the ``val`` split."""
    for tower in args.tower:
        check_tower(tower, args.scales, args.split)
    found = {split: squares(items) for split, items in sets.items()}
    image_source = {split: images for split, (images, _) in found.items()}
    report = StudyReport(
        args.output,
        task.name,
        {
            "data": args.data,
            "images": f"{len(sets['train'])} to train, {len(sets['val'])} to test, stretched to squares",
            "scales from": "the file" if args.full_resolution else "the base image (section 3.1)",
            "head": args.head,
            "features on the grid of": f"{args.output_scale}²" if args.output_scale else "the first scale",
            "training": f"{args.epochs} epochs, AdamW {args.rate}, batches of {args.batch_size}",
            **setting_of_report,
            "content": " ".join(f"{images.key} {truth}" for images, truth in found.values()),
        },
    )
    for tower in args.tower:
        for setting in args.settings:
            for seed in range(args.seed, args.seed + args.seeds):
                key = {"tower": tower, "scales": str(setting), "seed": seed}
                compute = partial(_score, args, task, sets, image_source, report, tower, setting, seed)
                report.row(key, compute, weights_key(tower, min(setting.scales)))
    report.finish(task.score, "tower")


def _score(
    args: argparse.Namespace,
    task: DenseTask,
    sets: DenseSets,
    image_source: dict[str, ImageSource],
    report: StudyReport,
    tower: str,
    setting: ScaleSetting,
    seed: int,
) -> dict[str, Any]:
    torch.manual_seed(seed)
    file = checkpoint_file(
        args.cache, task.name, weights_key(tower, min(setting.scales)), str(setting), seed, report.setting
    )
    if task.stock is None:
        metric = _score_on_features(args, task, sets, image_source, tower, setting, seed, file)
    else:
        metric = _score_stock(args, task, sets, tower, setting, seed, file)
    file.unlink(missing_ok=True)
    return {**metric, "paper's": task.paper(tower, setting)}


def _score_on_features(
    args: argparse.Namespace,
    task: DenseTask,
    sets: DenseSets,
    image_source: dict[str, ImageSource],
    tower: str,
    setting: ScaleSetting,
    seed: int,
    file: Any,
) -> dict[str, float]:
    extractor = Extractor(args.cache)
    features = {split: extractor.features(tower, setting, found) for split, found in image_source.items()}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    head = task.head(features["train"].channels).to(device)

    def maps(found: Features, index: Any) -> Tensor:
        tokens = found[index].to(device)
        side = round(tokens.shape[1] ** 0.5)
        return tokens.transpose(1, 2).unflatten(2, (side, side))

    side = 4 * round(features["train"][[0]].shape[1] ** 0.5)
    truth = torch.stack([_square_truth(item, side) for item in sets["train"]])

    def loss(index: Tensor) -> Tensor:
        prediction = head(maps(features["train"], index))
        prediction = F.interpolate(prediction, size=(side, side), mode="bilinear", align_corners=False)
        return task.loss(prediction, truth[index].to(device))

    train(
        head, loss, len(truth), epochs=args.epochs, rate=args.rate, batch=args.batch_size, seed=seed, file=file,
        name=f"{task.name} head",
    )  # fmt: skip
    metric = task.metric()
    with torch.inference_mode():
        for index, item in enumerate(sets["val"]):
            _update(metric, task, head(maps(features["val"], [index]))[0], item)
    return metric.result()


def _score_stock(
    args: argparse.Namespace, task: DenseTask, sets: DenseSets, tower: str, setting: ScaleSetting, seed: int, file: Any
) -> dict[str, float]:
    assert task.stock is not None
    towers = study_towers(tower, setting)
    backbone = S2Backbone.of(towers, list(setting.scales), setting.scales.index(setting.output), setting.merge)
    device = towers[0].s2.device
    stock = task.stock(backbone)
    stock.model.to(device)

    def images(items: list[DenseItem]) -> Tensor:
        side = setting.source
        return towers[0].normalise(torch.stack([_square_image(item, side) for item in items]))

    def loss(index: Tensor) -> Tensor:
        items = [sets["train"][int(number)] for number in index]
        pixels = images(items)
        truth = torch.stack([_square_truth(item, setting.source) for item in items]).to(device)
        if torch.rand(()) < 0.5:
            pixels, truth = pixels.flip(-1), truth.flip(-1)
        return stock.loss(pixels, truth)

    train(
        stock.model, loss, len(sets["train"]), epochs=args.epochs, rate=args.rate, batch=args.batch_size, seed=seed,
        file=file, name=args.head,
    )  # fmt: skip
    metric = task.metric()
    with torch.inference_mode():
        for item in sets["val"]:
            _update(metric, task, stock.predict(images([item]))[0], item)
    return metric.result()


def study_towers(tower: str, setting: ScaleSetting) -> list[StudyTower]:
    """The tower for the tiles of all scales, or one for each scale where they are run whole."""
    sides = [min(setting.scales)] if setting.split else setting.scales
    return [load_tower(tower, side) for side in sides]


def _update(metric: Any, task: DenseTask, prediction: Tensor, item: DenseItem) -> None:
    truth = item.truth()
    at_size = F.interpolate(prediction[None].float(), size=truth.shape, mode="bilinear", align_corners=False)[0]
    metric.update(task.decode(at_size.cpu()), truth)


def _square_image(item: DenseItem, side: int) -> Tensor:
    return torch.from_numpy(np.asarray(item.image().resize((side, side))).copy())


def _square_truth(item: DenseItem, side: int) -> Tensor:
    """The truth (side, side) at the middle of every cell: classes as whole numbers, depths as they are."""
    truth = item.truth()
    rows, columns = ((np.arange(side) * 2 + 1) * extent // (2 * side) for extent in truth.shape)
    picked = truth[rows[:, None], columns]
    return torch.from_numpy(picked.astype(np.float32 if picked.dtype.kind == "f" else np.int64))
