"""``llava-s2 study NAME``: the paper's experiments, one command each."""

import argparse
import importlib
from collections.abc import Callable
from pathlib import Path

from llava_s2.errors import InputError

_STUDIES = {
    "reconstruct": "how much of a larger tower's features a linear map of a smaller one's holds (table 2)",
    "probe": "a linear classifier on frozen features (tables 5 and 3)",
    "segment": "semantic segmentation on a frozen tower (tables 6, 12, 13)",
    "depth": "depth estimation on a frozen tower (table 7)",
    "memorize": "training a network to tell every image from every other (table 3)",
    "pretrain": "S2 inside pre-training and after it (table 4)",
    "robot": "picking up a cube by behaviour cloning (table 10)",
}


def add_commands(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``study`` to the command line."""
    parser = subparsers.add_parser("study", help="the paper's experiments on features")
    studies = parser.add_subparsers(dest="study", required=True, metavar="|".join([*_STUDIES, "all"]))
    parsers = {name: studies.add_parser(name, help=text, description=text) for name, text in _STUDIES.items()}
    for name, study in parsers.items():
        _add_common(study, name)
        study.set_defaults(run=_run)

    reconstruct = parsers["reconstruct"]
    reconstruct.add_argument("--source", action="append", metavar="TOWER", help="a further smaller tower")
    reconstruct.add_argument("--target", metavar="TOWER", help="the larger tower whose features are reconstructed")
    reconstruct.add_argument(
        "--bound", metavar="TOWER", help="a still larger tower; its information is the upper bound"
    )
    reconstruct.add_argument("--target-scale", type=int, metavar="S", help="(default: the smallest of --scales)")

    probe = parsers["probe"]
    probe.add_argument("--fast", action="store_true", help="solve for the classifier in closed form")
    probe.add_argument("--hard", metavar="TOWER", help="list what this larger tower gains and S2 does not (figure 7)")
    for study, epochs, rate, batch in ((probe, 30, 5e-4, 512), (parsers["memorize"], 20, 1e-3, 64)):
        _add_training(study, epochs, rate, batch)
    _add_training(parsers["pretrain"], 20, 1e-3, 64)
    _add_training(parsers["robot"], 40, 1e-3, 64)

    for name, heads in (("segment", ("linear", "upernet", "mask2former")), ("depth", ("linear", "vpd"))):
        dense = parsers[name]
        dense.add_argument("--head", choices=heads, default=heads[-1], help="decoder (default: %(default)s)")
        dense.add_argument(
            "--output-scale", type=int, metavar="S", help="its grid is the features' (default: the first)"
        )
        dense.add_argument("--no-split", action="store_true", help="run every scale as one image (table 12)")
        dense.add_argument("--merge", choices=("concat", "add"), default="concat", help="of scales (table 13)")
        _add_training(dense, 30, 1e-3 if name == "depth" else 1e-4, 16)
    for name in ("memorize", "pretrain"):
        parsers[name].add_argument("--width", type=int, default=192, help="of the base ViT (default: %(default)s)")
        parsers[name].add_argument("--depth", type=int, default=6, help="of the base ViT (default: %(default)s)")
        parsers[name].add_argument("--patch", type=int, default=8, help="pixels (default: %(default)s)")
    parsers["robot"].add_argument("--demos", type=Path, metavar="F.hdf5", help="your own, in robomimic's layout")
    parsers["robot"].add_argument("--demonstrations", type=_positive, default=120, help="(default: %(default)s)")
    parsers["robot"].add_argument("--positions", type=_positive, default=16, help="to test on (default: %(default)s)")

    everything = studies.add_parser("all", help="docs/studies.md again, on small real data out of packages")
    everything.add_argument("--small", action="store_true", required=True, help="data without a download (needed)")
    everything.add_argument("--output", type=Path, required=True, metavar="DIR")
    everything.add_argument("--only", choices=tuple(_STUDIES), action="append", help="these studies alone")
    everything.set_defaults(run=_run_all)


def _add_common(parser: argparse.ArgumentParser, study: str) -> None:
    """The flags of several studies, each where it does something."""
    frozen = study not in ("memorize", "pretrain")
    if frozen:
        parser.add_argument("tower", nargs="*", help="folder, hub id, open_clip:ARCH/WEIGHTS, timm:ARCH or mae:FILE")
    parser.add_argument(
        "--scales",
        action="append",
        type=_scales,
        metavar="S,S,…",
        help="image sides in pixels; may be repeated (default: 224 and 224,448)",
    )
    if study != "robot":
        parser.add_argument("--data", type=Path, metavar="DIR", help="see docs/studies.md for the layouts")
        parser.add_argument("--limit", type=_positive, metavar="N", help="at most so many images of a split")
    if study not in ("segment", "depth", "robot"):
        parser.add_argument(
            "--crop", type=_share, default=0.875, help="share of the shorter side to keep (default: .875)"
        )
        parser.add_argument("--val-labels", type=Path, metavar="FILE", help="classes of a flat val folder")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="for report.json, report.md, plots")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="of features (default: OUTPUT/features)")
    if frozen:
        parser.add_argument(
            "--full-resolution",
            action="store_true",
            help="larger scales see the file's detail; default is the paper's: interpolated from the base image",
        )
    parser.add_argument("--seed", type=int, default=0, help="the first (default: 0)")
    if study != "reconstruct":
        parser.add_argument("--seeds", type=_positive, default=1, help="how many (default: 1)")


def _add_training(parser: argparse.ArgumentParser, epochs: int, rate: float, batch: int) -> None:
    parser.add_argument("--epochs", type=_positive, default=epochs, help="(default: %(default)s)")
    parser.add_argument("--rate", type=float, default=rate, help="learning rate (default: %(default)s)")
    parser.add_argument("--batch-size", type=_positive, default=batch, metavar="B", help="(default: %(default)s)")


def _scales(text: str) -> tuple[int, ...]:
    try:
        sides = tuple(int(side) for side in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: sides in pixels, such as 224,448") from None
    if not sides or min(sides) < 1 or list(sides) != sorted(set(sides)):
        raise argparse.ArgumentTypeError(f"{text!r}: ascending sides in pixels, such as 224,448")
    return sides


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: a positive whole number")
    return int(text)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: a share, over 0 and at most 1")
    return share


def _run(args: argparse.Namespace) -> None:
    import torch

    from llava_s2.studies.feature_cache import ScaleSetting

    if args.study != "robot" and args.data is None:
        raise InputError(f"study {args.study}: name the folder of images with --data")
    if hasattr(args, "tower"):
        args.tower += getattr(args, "source", None) or []
        if not args.tower:
            raise InputError(f"study {args.study}: name a tower, such as timm:vit_base_patch16_224.augreg_in21k")
    args.cache = args.cache or args.output / "features"
    args.scales = args.scales or [(224,), (224, 448)]
    args.split, merge = not getattr(args, "no_split", False), getattr(args, "merge", "concat")
    wanted, full_resolution = getattr(args, "output_scale", None), getattr(args, "full_resolution", False)
    if wanted and not any(wanted in scales for scales in args.scales):
        raise InputError(f"--output-scale {wanted}: is none of the --scales")
    args.settings = [
        ScaleSetting(scales, wanted if wanted and wanted in scales else scales[0], full_resolution, args.split, merge)
        for scales in args.scales
    ]
    torch.manual_seed(args.seed)
    module = importlib.import_module(f"llava_s2.studies.{args.study}")
    run: Callable[[argparse.Namespace], None] = module.run
    run(args)


def _run_all(args: argparse.Namespace) -> None:
    from llava_s2.studies.small_studies import run_all

    run_all(args)
