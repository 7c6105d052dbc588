"""``llava-s2 study reconstruct``: how much of a larger model's features a smaller one's hold (table 2).

The mutual information of two Gaussian features is proportional to -log2(l / l0), l the error of the best linear map and
l0 that of the best constant (the paper's appendix B). The linear map is solved for in closed form, from sums that one
pass over the images accumulates.
"""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from llava_s2.errors import InputError
from llava_s2.files import atomic_write
from llava_s2.studies.feature_cache import ImageSource, ScaleSetting, read_batches, scale_features
from llava_s2.studies.paper_tables import paper_information
from llava_s2.studies.study_data import cropped_splits
from llava_s2.studies.study_report import StudyReport
from llava_s2.studies.study_towers import StudyTower, check_tower, load_tower, weights_key
from llava_s2.studies.training_loop import checkpoint_file

_RIDGES = tuple(10.0**power for power in range(-8, 1))  # relative to the mean variance of the source's features
_FEW = 3000
_SAVE_SECONDS = 30.0


@dataclass
class Moments:
    """Sums over feature vectors, in float64: all that a linear map and its error depend on.

    Attributes:
        count: vectors (n). x, y: sums (dx,) and (dy,). xx, xy: sums of products (dx, dx) and (dx, dy). yy: sum of the
            squares of all of y.
    """

    count: float
    x: Tensor
    y: Tensor
    xx: Tensor
    xy: Tensor
    yy: float

    @classmethod
    def zeros(cls, dx: int, dy: int, device: Any = "cpu") -> "Moments":
        new = lambda *shape: torch.zeros(*shape, dtype=torch.float64, device=device)  # noqa: E731
        return cls(0.0, new(dx), new(dy), new(dx, dx), new(dx, dy), 0.0)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Adds source vectors (n, dx) and target vectors (n, dy)."""
        x, y = x.double(), y.double()
        self.count += len(x)
        self.x += x.sum(0)
        self.y += y.sum(0)
        self.xx += x.T @ x
        self.xy += x.T @ y
        self.yy += float(y.square().sum())

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def arrays(self) -> dict[str, np.ndarray]:
        return {name: np.asarray(torch.as_tensor(value).cpu()) for name, value in vars(self).items()}

    @classmethod
    def load(cls, arrays: dict[str, np.ndarray]) -> "Moments":
        tensors = {name: torch.from_numpy(arrays[name]) for name in ("x", "y", "xx", "xy")}
        return cls(float(arrays["count"]), **tensors, yy=float(arrays["yy"]))


@dataclass(frozen=True)
class LinearMap:
    """y = x W + b."""

    weight: Tensor
    bias: Tensor

    def loss(self, m: Moments) -> float:
        """Mean squared error over vectors and channels of those that `m` sums up."""
        w, b = self.weight, self.bias
        error = m.yy + (w * (m.xx @ w)).sum() + m.count * b.square().sum()
        error = error - 2 * (w * m.xy).sum() - 2 * b @ m.y + 2 * (m.x @ w) @ b
        return max(float(error), 0.0) / (m.count * len(m.y))


def ridge(m: Moments, strength: float) -> LinearMap:
    """The minimiser of the squared error plus n x `strength` x the mean variance of x's channels x |W|²."""
    mean_x, mean_y = m.x / m.count, m.y / m.count
    covariance = m.xx / m.count - torch.outer(mean_x, mean_x)
    penalty = strength * covariance.diagonal().mean()
    covariance.diagonal().add_(penalty)
    weight = torch.linalg.solve(covariance, m.xy / m.count - torch.outer(mean_x, mean_y))
    return LinearMap(weight, mean_y - mean_x @ weight)


def constant(m: Moments) -> LinearMap:
    """The best constant vector."""
    return LinearMap(torch.zeros_like(m.xy), m.y / m.count)


def information(loss: float, constant_loss: float) -> float:
    """-log2(l / l0), in bits."""
    return -math.log2(loss / constant_loss)


def best_ridge(fit: Moments, held_out: Moments) -> float:
    """The strength whose map of `fit` has the smallest error on `held_out`."""
    return min(_RIDGES, key=lambda strength: ridge(fit, strength).loss(held_out))


def reconstruction(parts: dict[str, Moments]) -> dict[str, Any]:
    """Losses and information from the sums over ``fit``, ``held_out`` and, where there are test images, ``test``."""
    strength = best_ridge(parts["fit"], parts["held_out"])
    train = parts["fit"] + parts["held_out"]
    linear, dummy = ridge(train, strength), constant(train)
    row: dict[str, Any] = {"ridge": strength}
    for name, moments in (("train", train), ("test", parts.get("test"))):
        if moments is not None and moments.count:
            loss, constant_loss = linear.loss(moments), dummy.loss(moments)
            row |= {f"{name} l": loss, f"{name} l0": constant_loss, f"{name} info": information(loss, constant_loss)}
    return row


def accumulate(
    source: StudyTower, setting: ScaleSetting, target: StudyTower, target_side: int, image_source: ImageSource,
    file: Path, parts_of: list[str],
) -> dict[str, Moments]:  # fmt: skip
    """One pass over images; what it has summed up is saved every half minute, and gone on with after a stop.

    Args:
        parts_of: for each image, which part of the result it belongs to.

    Returns:
        The sums of each part. The source's features are on the target's grid.
    """
    channels = source.channels * len(setting.scales), target.channels
    device = source.s2.device
    parts = {name: Moments.zeros(*channels) for name in sorted(set(parts_of))}
    done = 0
    if file.exists():
        with np.load(file) as saved:
            done = int(saved["done"])
            for name in parts:
                fields = ("count", "x", "y", "xx", "xy", "yy")
                parts[name] = Moments.load({key: saved[f"{name}.{key}"] for key in fields})
    for moments in parts.values():
        for name in ("x", "y", "xx", "xy"):
            setattr(moments, name, getattr(moments, name).to(device))
    saved_at = monotonic()
    sides = sorted({setting.source, target_side})
    with tqdm(total=image_source.count, initial=done, desc="reconstruct", unit="image") as bar, torch.inference_mode():
        for start, images in read_batches(image_source, sides, done, 8 if device.type == "cpu" else 64):
            y = target(target.normalise(images[target_side]), [target_side])
            pixels = source.normalise(images[setting.source])
            x = torch.cat([scale_features(source, pixels, side, y.shape[2]) for side in setting.scales], dim=1)
            for offset in range(len(x)):
                vectors = (maps[offset].flatten(1).T for maps in (x, y))
                parts[parts_of[start + offset]].add(*vectors)
            bar.update(len(x))
            finished = start + len(x)
            if monotonic() - saved_at > _SAVE_SECONDS or finished == image_source.count:
                with atomic_write(file) as partial, partial.open("wb") as stream:
                    arrays = {f"{name}.{key}": v for name, m in parts.items() for key, v in m.arrays().items()}
                    np.savez(stream, done=np.asarray(finished), **arrays)  # type: ignore[arg-type]
                saved_at = monotonic()
    for moments in parts.values():
        for name in ("x", "y", "xx", "xy"):
            setattr(moments, name, getattr(moments, name).cpu())
    return parts


def run(args: argparse.Namespace) -> None:
    """Runs the study; see ``llava-s2 study reconstruct --help``."""
    if not args.target:
        raise InputError("study reconstruct: name the larger model whose features are reconstructed with --target")
    base = min(min(scales) for scales in args.scales)
    target_side = args.target_scale or base
    rows: list[tuple[str, ScaleSetting]] = [(t, s) for t in args.tower for s in args.settings]
    if args.bound:
        rows.append((args.bound, ScaleSetting((target_side,), target_side)))
    for tower, setting in rows:
        check_tower(tower, [setting.scales])
    check_tower(args.target, [(target_side,)])
    splits = cropped_splits(args, labelled=False)
    train, test = splits["train"], splits.get("val")
    report = StudyReport(
        args.output,
        "reconstruct",
        {
            "target": f"{args.target} at {target_side}²",
            "data": args.data,
            "images": train.count + (test.count if test else 0),
            "scales from": "the file" if args.full_resolution else "the base image (section 3.1)",
            "crop": args.crop,
            "seed": args.seed,
            "content": " ".join(source.key for source in (train, test) if source),
            "weights of the target": weights_key(args.target, target_side),
        },
    )
    if train.count < _FEW:
        report.note(
            f"Only {train.count} images to fit on: the linear map has more freedom than they hold down, so that the "
            f"information on the training images is too high. Use {_FEW} or more."
        )
    held_out = np.random.default_rng(args.seed).permutation(train.count) < max(train.count // 10, 1)
    parts_of = ["held_out" if out else "fit" for out in held_out]
    target = load_tower(args.target, target_side)
    for number, (tower, setting) in enumerate(rows):
        is_bound = bool(args.bound) and number == len(rows) - 1

        def compute(tower: str = tower, setting: ScaleSetting = setting) -> dict[str, Any]:
            source = load_tower(tower, min(setting.scales))
            weights = weights_key(tower, min(setting.scales))
            parts: dict[str, Moments] = {}
            for split, image_source, labels in (("train", train, parts_of), ("test", test, [])):
                if image_source is not None:
                    of = (split, weights, setting.scales, setting.source, report.setting)
                    file = checkpoint_file(args.cache, "moments", *of).with_suffix(".npz")
                    names = labels or ["test"] * image_source.count
                    parts |= accumulate(source, setting, target, target_side, image_source, file, names)
            paper = paper_information(args.target, tower, setting.scales)
            as_in_paper = train.count > 1_000_000 and not args.full_resolution  # on ImageNet
            told = f"{paper[0]} / {paper[1]}" if paper and as_in_paper else None
            return {**reconstruction(parts), "paper's info": told}

        role = "bound" if is_bound else "source"
        key = {"tower": tower, "scales": str(setting), "role": role}
        report.row(key, compute, weights_key(tower, min(setting.scales)))
    if args.bound:
        bound = next(row for row in report.rows if row["role"] == "bound")
        for row in report.rows:
            for split in ("train", "test"):
                if f"{split} info" in row:
                    row[f"{split} ratio %"] = 100 * row[f"{split} info"] / bound[f"{split} info"]
    report.finish("test info" if test else "train info", "tower")
