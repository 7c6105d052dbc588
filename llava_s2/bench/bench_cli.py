"""``llava-s2 bench flops|throughput|sweep``."""

import argparse
from pathlib import Path

from llava_s2.formats.model_source import positive


def add_commands(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``bench`` to the command line."""
    parser = subparsers.add_parser("bench", help="cost, speed and worth of vision towers")
    actions = parser.add_subparsers(dest="action", required=True, metavar="flops|throughput|sweep")

    flops = actions.add_parser("flops", help="parameters, FLOPs, tiles and tokens, without weights")
    flops.add_argument("tower", nargs="*", help="folder, hub id, open_clip:ARCH, timm:ARCH, mae:FILE or embedded")
    _add_scales(flops)
    flops.add_argument(
        "--feature_layer", type=int, default=-1, metavar="N", help="hidden state that is read (default: -1, all blocks)"
    )
    flops.add_argument("--paper", action="store_true", help="the paper's tables 5 to 10 and 14, counted again")
    flops.set_defaults(run=_flops)

    throughput = actions.add_parser("throughput", help="the paper's table 14 on this machine, with random weights")
    throughput.add_argument("--output", type=Path, required=True, metavar="DIR", help="for throughput.json and .png")
    throughput.add_argument("--batch-size", type=positive, default=1, metavar="B", help="images (default: 1)")
    throughput.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    throughput.add_argument("--seconds", type=float, default=5, help="at least this long a row (default: 5)")
    throughput.add_argument("--largest", type=float, metavar="G", help="leave out rows of more than G x 10^9 FLOPs")
    throughput.set_defaults(run=_throughput)

    sweep = actions.add_parser(
        "sweep",
        help="score against FLOPs, over towers and scales",
        description="A probe on the frozen tower reads the color of a small named thing off its tokens, on drawn "
        "photographs. What is scored already in the output folder is not scored again.",
    )
    sweep.add_argument("tower", nargs="+", help="a tower with weights: embedded, a folder, timm:ARCH, …")
    _add_scales(sweep)
    sweep.add_argument("--feature_layer", type=int, metavar="N", help="hidden state that is read")
    sweep.add_argument("--ablation", action="store_true", help="also with whole images, and with scales added")
    sweep.add_argument("--output", type=Path, required=True, metavar="DIR", help="for sweep.jsonl and sweep.png")
    sweep.add_argument("--images", type=positive, default=600, help="to learn from (default: %(default)s)")
    sweep.add_argument(  # its name in 0.1
        "--pictures", dest="images", type=positive, default=argparse.SUPPRESS, help=argparse.SUPPRESS
    )
    sweep.add_argument("--tests", type=positive, default=300, help="images to score on (default: %(default)s)")
    sweep.add_argument("--seed", type=int, default=0, help="of the probe (default: %(default)s)")
    sweep.set_defaults(run=_sweep)


def _add_scales(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--scales",
        action="append",
        metavar="S,S,…",
        help="image sides in pixels, such as 224,448; may be repeated (default: the tower's size, x 1, x 2, x 3)",
    )


def _scales(args: argparse.Namespace, tower: str) -> list[list[int]]:
    """The sets of scales asked for, or the paper's: 1, 1 and 2, 1 to 3 times the tower's own size."""
    from llava_s2.errors import InputError
    from llava_s2.model.embedded import resolve_vision_tower
    from llava_s2.s2.backbones import geometry
    from llava_s2.towers.load_tower import load_vision_config

    if args.scales:
        try:
            return [[int(side) for side in scales.split(",")] for scales in args.scales]
        except ValueError as error:
            raise InputError(f"--scales {' '.join(args.scales)}: should be like 224,448") from error
    try:
        base = geometry(load_vision_config(resolve_vision_tower(tower))).image_size
    except ValueError as error:
        raise error if isinstance(error, InputError) else InputError(f"{tower}: {error}") from error
    return [[base * factor for factor in range(1, most + 1)] for most in (1, 2, 3)]


def _flops(args: argparse.Namespace) -> None:
    from llava_s2.bench.flops import count, paper_table, reproduce, tower_table
    from llava_s2.errors import InputError

    if args.paper:
        print(paper_table(reproduce()))
    elif not args.tower:
        raise InputError("name a tower, such as open_clip:ViT-L-14, or ask for the paper's tables with --paper")
    if args.tower:
        print(
            tower_table(
                {
                    f"{tower} {','.join(map(str, scales))}": count(tower, scales, args.feature_layer)
                    for tower in args.tower
                    for scales in _scales(args, tower)
                }
            )
        )


def _throughput(args: argparse.Namespace) -> None:
    from llava_s2.bench.throughput import measure_table

    print(measure_table(args.output, args.batch_size, args.dtype, args.seconds, args.largest))


def _sweep(args: argparse.Namespace) -> None:
    from llava_s2.bench.sweep import Setting, sweep

    settings = []
    for tower in args.tower:
        for scales in _scales(args, tower):
            settings.append(Setting(tower, tuple(scales), args.feature_layer))
            if args.ablation and len(scales) > 1:
                settings.append(Setting(tower, tuple(scales), args.feature_layer, split=False))
                settings.append(Setting(tower, tuple(scales), args.feature_layer, merge="add"))
    print(sweep(settings, args.output, args.images, args.tests, args.seed))
