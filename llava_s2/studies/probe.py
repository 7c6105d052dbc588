"""``llava-s2 study probe``: a linear classifier on frozen features (tables 5 and 3, figures 2a-c, 7 and 8a)."""

import argparse
import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from llava_s2.errors import InputError
from llava_s2.files import atomic_write
from llava_s2.studies.feature_cache import Extractor, Features, ScaleSetting, cropped
from llava_s2.studies.image_sets import ImageSet
from llava_s2.studies.linear_probe import LinearProbe, Scores, train_by_sgd, train_in_closed_form
from llava_s2.studies.paper_tables import paper_score
from llava_s2.studies.study_data import image_splits
from llava_s2.studies.study_report import StudyReport, short, wilson_interval
from llava_s2.studies.study_towers import check_tower, weights_key
from llava_s2.studies.training_loop import checkpoint_file

_IMAGENET_VAL = (1000, 50_000)  # classes, images
_HARD_SHOWN = 24


def run(args: argparse.Namespace) -> None:
    """Runs the study; see ``llava-s2 study probe --help``."""
    for tower in args.tower:
        check_tower(tower, args.scales, args.split)
    if args.hard and args.hard not in args.tower:
        raise InputError(f"--hard {args.hard}: is none of the towers of this study; name it among them")
    sets = image_splits(args)
    train, val = cropped(sets["train"], args.crop), cropped(sets["val"], args.crop)
    labels = {name: torch.tensor([item.label for item in images.items]) for name, images in sets.items()}
    classes = len(sets["train"].classes)
    as_in_paper = (classes, len(sets["val"])) == _IMAGENET_VAL and not args.full_resolution and not args.fast
    report = StudyReport(
        args.output,
        "probe",
        {
            "data": args.data,
            "classes": classes,
            "images": f"{train.count} to train, {val.count} to test",
            "scales from": "the file" if args.full_resolution else "the base image (section 3.1)",
            "crop": args.crop,
            "classifier": "closed form" if args.fast else f"SGD, {args.epochs} epochs, {args.rate}, {args.batch_size}",
            "content": f"{train.key} {val.key}",
        },
    )
    extractor = Extractor(args.cache, pool=True)

    def compute(tower: str, setting: ScaleSetting, seed: int) -> dict[str, Any]:
        features = {name: extractor.features(tower, setting, found) for name, found in (("train", train), ("val", val))}
        file = checkpoint_file(
            args.cache, "probe", weights_key(tower, min(setting.scales)), str(setting), seed, report.setting
        )
        probe = _fit(args, features["train"], labels["train"], classes, seed, file)
        on_train = probe.score(features["train"], labels["train"])
        on_val = probe.score(features["val"], labels["val"])
        low, high = wilson_interval(int(on_val.right.sum()), len(on_val.right))
        return {
            "accuracy %": 100 * on_val.accuracy,
            "95 % interval": f"{100 * low:.1f}-{100 * high:.1f}",
            "train loss": on_train.loss,
            "test loss": on_val.loss,
            "paper's accuracy %": paper_score(5, tower, setting.scales) if as_in_paper else None,
            "answers": _save_answers(args.output, on_val, f"{tower} {setting} {seed}"),
        }

    for tower in args.tower:
        for setting in args.settings:
            for seed in range(args.seed, args.seed + args.seeds):
                key = {"tower": tower, "scales": str(setting), "seed": seed}
                report.row(key, partial(compute, tower, setting, seed), weights_key(tower, min(setting.scales)))
    if args.hard:
        _hard(args, report, sets["val"], labels["val"])
    report.finish("accuracy %", "tower")


def _save_answers(output: Path, scores: Scores, name: str) -> str:
    """Writes the predictions on the test images; returns the file's name within the folder."""
    file = f"answers/{hashlib.blake2b(name.encode(), digest_size=8).hexdigest()}.npz"
    with atomic_write(output / file) as partial, partial.open("wb") as stream:
        np.savez(stream, predictions=scores.predictions, log_probability=scores.margin)
    return file


def _fit(
    args: argparse.Namespace, features: Features, labels: torch.Tensor, classes: int, seed: int, file: Path
) -> LinearProbe:
    if args.fast:
        return train_in_closed_form(features, labels, classes, seed=seed)[0]
    probe = train_by_sgd(
        features, labels, classes, epochs=args.epochs, rate=args.rate, batch=args.batch_size, seed=seed, file=file
    )
    file.unlink(missing_ok=True)
    return probe


def _hard(args: argparse.Namespace, report: StudyReport, images: ImageSet, labels: torch.Tensor) -> None:
    """What the larger tower gains over the smaller and S2 does not (the paper's figure 7): a list and a sheet."""
    smaller = next((tower for tower in args.tower if tower != args.hard), None)
    if smaller is None or len(args.settings) < 2:
        raise InputError("--hard: needs a smaller tower beside the larger, and --scales with one and with more scales")
    single, multi = str(args.settings[0]), str(args.settings[-1])

    def answers(tower: str, scales: str) -> Any:
        row = next(row for row in report.rows if (row["tower"], row["scales"]) == (tower, scales))
        return np.load(args.output / row["answers"])

    base, s2, large = answers(smaller, single), answers(smaller, multi), answers(args.hard, single)
    gains = []
    for index, label in enumerate(labels.tolist()):
        small_wrong = base["predictions"][index] != label and s2["predictions"][index] != label
        if large["predictions"][index] == label and small_wrong:
            gain = large["log_probability"][index] - max(small["log_probability"][index] for small in (base, s2))
            gains.append((float(gain), index))
    gains.sort(reverse=True)
    names = images.classes
    lines = ["image\tclass\tsingle-scale answer\tS2 answer\tgain in log-probability"]
    for gain, index in gains:
        item, wrong = images.items[index], (names[small["predictions"][index]] for small in (base, s2))
        lines.append("\t".join([item.name, names[item.label], *wrong, f"{gain:.2f}"]))
    with atomic_write(args.output / "hard.tsv") as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    shown = gains[:_HARD_SHOWN]
    if shown:
        sheet = Image.new("RGB", (6 * 160, -(-len(shown) // 6) * 186), "white")
        draw = ImageDraw.Draw(sheet)
        for place, (_, index) in enumerate(shown):
            x, y = place % 6 * 160, place // 6 * 186
            sheet.paste(cropped(images.pick([index]), args.crop).load(0, 156), (x + 2, y + 2))
            item = images.items[index]
            draw.text((x + 3, y + 160), f"{names[item.label]}\nnot {names[s2['predictions'][index]]}", "black")
        with atomic_write(args.output / "hard.png") as partial:
            sheet.save(partial)
    report.note(
        f"{len(gains)} images that {short(args.hard)} gets right and {short(smaller)} wrong, both at {single} and at "
        f"{multi}: hard.tsv, hard.png."
    )
