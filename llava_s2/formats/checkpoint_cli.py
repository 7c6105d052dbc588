"""``llava-s2 init``, ``convert``, ``merge`` and ``inspect``."""

import argparse
import json

from llava_s2.errors import InputError
from llava_s2.formats.llava_config import parse_scales
from llava_s2.formats.model_source import DTYPES, add_part_arguments
from llava_s2.model.templates import TEMPLATE_HELP


def add_commands(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the commands on checkpoints."""
    init = subparsers.add_parser("init", help="make a LLaVA-S² of a language model and a tower, ready to be trained")
    init.add_argument("dst", metavar="DST", help="folder to write; it appears when it is whole")
    init.add_argument("--llm", metavar="L", help="language model: a folder, a hub id, a GGUF file or embedded")
    init.add_argument("--widen_from", metavar="M", help="in its place: a single-scale LLaVA; it answers as it did")
    init.add_argument(
        "--vision_tower", metavar="T", help="vision tower: a folder, a hub id, open_clip:…, timm:…, mae:…"
    )
    init.add_argument("--s2_scales", metavar="S", required=True, help="image sides in pixels, such as 336,672,1008")
    init.add_argument("--mm_vision_select_layer", type=int, metavar="N", help="hidden state of the tower that is read")
    init.add_argument(
        "--image_aspect_ratio", default="pad", metavar="A", help="pad, square, resize or keep (default: pad)"
    )
    init.add_argument(
        "--template", default="vicuna_v1", metavar="NAME", help="conversation template (default: vicuna_v1)"
    )
    init.add_argument("--gguf_file", metavar="F", help="the language model's GGUF file in its folder")
    init.set_defaults(run=_init)

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
    merge.add_argument("--template", metavar="NAME", help=f"{TEMPLATE_HELP}, where ADAPTER does not say")
    merge.set_defaults(run=_merge)

    convert = subparsers.add_parser("convert", help="write a checkpoint in another format")
    convert.add_argument("src", metavar="SRC", help="checkpoint of any kind: a folder or a hub id")
    convert.add_argument("dst", metavar="DST", help="folder to write; it appears when it is whole")
    convert.add_argument(
        "--to",
        choices=("native", "llava", "hf", "lora"),
        default="native",
        help="native: this project's; llava: the original code's; hf: stock transformers'; lora: of an adapter, the "
        "language model's LoRA alone, as vLLM takes it (default: %(default)s)",
    )
    convert.add_argument("--base", metavar="B", help="model under an adapter; for llava, where the tokenizer files are")
    convert.add_argument(
        "--vision_tower", metavar="T", help="vision tower, if not the one SRC names; for llava, the name to write"
    )
    convert.add_argument(
        "--dtype", choices=DTYPES, default="auto", help="of the new weights; auto rounds nothing (default: %(default)s)"
    )
    convert.add_argument(
        "--replace_vision_tower", action="store_true", help="use --vision_tower although SRC holds one"
    )
    convert.add_argument("--template", metavar="NAME", help=f"{TEMPLATE_HELP}, where SRC does not say")
    convert.set_defaults(run=_convert)

    inspect = subparsers.add_parser("inspect", help="say what a checkpoint is and what it lacks, without its weights")
    inspect.add_argument("path", metavar="PATH", help="checkpoint: a folder or a hub id")
    add_part_arguments(inspect)
    inspect.add_argument("--json", action="store_true", help="one JSON object")
    inspect.set_defaults(run=_inspect)


def _init(args: argparse.Namespace) -> None:
    from llava_s2.formats.create import create_native, create_widened

    scales = parse_scales(args.s2_scales, "--s2_scales")
    if (args.llm is None) == (args.widen_from is None):
        raise InputError("name the model to start from: either --llm with --vision_tower, or --widen_from")
    if args.widen_from is not None:
        create_widened(args.dst, args.widen_from, scales, vision_tower=args.vision_tower)
    elif args.vision_tower is None:
        raise InputError("--vision_tower is missing: what the language model is to see with")
    else:
        create_native(
            args.dst,
            args.llm,
            args.vision_tower,
            scales,
            feature_layer=args.mm_vision_select_layer,
            template=args.template,
            image_aspect_ratio=args.image_aspect_ratio,
            gguf_file=args.gguf_file,
        )
    print(f"wrote {args.dst}: its projector is yet to be trained" if args.llm else f"wrote {args.dst}")


def _merge(args: argparse.Namespace) -> None:
    from llava_s2.formats.convert import merge

    merge(
        args.adapter,
        args.dst,
        args.base,
        vision_tower=args.vision_tower,
        replace_vision_tower=args.replace_vision_tower,
        dtype=args.dtype,
        template=args.template,
    )
    print(f"wrote {args.dst}")


def _convert(args: argparse.Namespace) -> None:
    from llava_s2.formats.convert import convert

    convert(
        args.src,
        args.dst,
        args.to,
        base=args.base,
        vision_tower=args.vision_tower,
        replace_vision_tower=args.replace_vision_tower,
        dtype=args.dtype,
        template=args.template,
    )
    print(f"wrote {args.dst}")


def _inspect(args: argparse.Namespace) -> int:
    from llava_s2.formats.inspect import inspect

    report = inspect(args.path, args.base, vision_tower=args.vision_tower)
    print(json.dumps(report.to_dict(), ensure_ascii=False) if args.json else report)
    return 1 if report.problems else 0
