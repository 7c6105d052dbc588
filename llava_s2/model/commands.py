"""``llava-s2 convert``, ``merge`` and ``inspect``."""

import argparse
import json

from llava_s2.model.arguments import DTYPES, add_part_arguments


def add_commands(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the commands on checkpoints."""
    merge = subparsers.add_parser("merge", help="make one plain checkpoint of an adapter and its base")
    merge.add_argument("adapter", metavar="ADAPTER", help="adapter or projector: a folder or a hub id")
    merge.add_argument("dst", metavar="DST", help="folder to write")
    add_part_arguments(merge)
    merge.add_argument(
        "--dtype",
        choices=DTYPES,
        default="auto",
        help="of the new weights; auto is float32, which loses nothing of what was trained (default: %(default)s)",
    )
    merge.set_defaults(run=_merge)

    convert = subparsers.add_parser("convert", help="write a checkpoint in another format")
    convert.add_argument("src", metavar="SRC", help="checkpoint of any kind: a folder or a hub id")
    convert.add_argument("dst", metavar="DST", help="folder to write; it appears when it is whole")
    convert.add_argument(
        "--to",
        choices=("native", "llava", "hf"),
        default="native",
        help="native: this project's; llava: the original code's; hf: stock transformers' (default: %(default)s)",
    )
    convert.add_argument("--base", metavar="B", help="model under an adapter; for llava, where the tokenizer files are")
    convert.add_argument(
        "--vision_tower", metavar="T", help="vision tower, if not the one SRC names; for llava, the name to write"
    )
    convert.add_argument(
        "--dtype", choices=DTYPES, default="auto", help="of the new weights; auto rounds nothing (default: %(default)s)"
    )
    convert.set_defaults(run=_convert)

    inspect = subparsers.add_parser("inspect", help="say what a checkpoint is and what it lacks, without its weights")
    inspect.add_argument("path", metavar="PATH", help="checkpoint: a folder or a hub id")
    add_part_arguments(inspect)
    inspect.add_argument("--json", action="store_true", help="one JSON object")
    inspect.set_defaults(run=_inspect)


def _merge(args: argparse.Namespace) -> None:
    from llava_s2.model.convert import merge

    merge(args.adapter, args.dst, args.base, vision_tower=args.vision_tower, dtype=args.dtype)
    print(f"wrote {args.dst}")


def _convert(args: argparse.Namespace) -> None:
    from llava_s2.model.convert import convert

    convert(args.src, args.dst, args.to, base=args.base, vision_tower=args.vision_tower, dtype=args.dtype)
    print(f"wrote {args.dst}")


def _inspect(args: argparse.Namespace) -> int:
    from llava_s2.model.inspect import inspect

    report = inspect(args.path, args.base, vision_tower=args.vision_tower)
    print(json.dumps(report.to_dict(), ensure_ascii=False) if args.json else report)
    return 1 if report.problems else 0
