"""``llava-s2 data``: checks and makes data sets."""

import argparse
import json
import os
from pathlib import Path

from llava_s2.data.validation_error import KINDS
from llava_s2.errors import InputError
from llava_s2.files import atomic_write
from llava_s2.formats.model_source import positive
from llava_s2.model.embedded import NAME
from llava_s2.model.templates import TEMPLATE_HELP

SHAPES = ("llava", "messages", "sharegpt", "datasets")


def add_commands(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``data`` to the command line."""
    parser = subparsers.add_parser("data", help="check a training file; make data sets")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    things = actions.add_parser("things", help="draw small named things on photographs, and questions about them")
    things.add_argument("kind", choices=("captions", "instructions", "vstar"))
    things.add_argument("folder", type=Path, help="new folder: LLaVA JSON and images, or a V* folder")
    things.add_argument("--images", type=positive, default=200, help="for vstar: of each kind (default: %(default)s)")
    things.add_argument(
        "--side",
        type=int,
        nargs=2,
        default=(1000, 4000),
        metavar=("MIN", "MAX"),
        help="longer side of an image in pixels (default: 1000 4000)",
    )
    things.add_argument("--things", type=int, nargs=2, default=(3, 6), metavar=("MIN", "MAX"), help="default: 3 6")
    things.add_argument("--first-seed", type=int, default=0, help="seed of the first image (default: %(default)s)")
    things.set_defaults(run=_things)

    check = actions.add_parser(
        "check",
        help="look at every record and image of a training file",
        description="The last line printed is one JSON object. Exit status: 0 without a fault, 1 with any.",
    )
    check.add_argument("file", help="JSON or JSON lines (.gz), a datasets folder, Parquet or webdataset files")
    check.add_argument("--images", metavar="DIR", help="folder or tar files that the records' images are in")
    check.add_argument(
        "--model",
        default=NAME,
        metavar="M",
        help="whose tokens to count: a LLaVA or a language model, folder or hub id; none leaves them out "
        "(default: the embedded one)",
    )
    check.add_argument("--base", metavar="B", help="language model under an adapter")
    check.add_argument("--template", help=f"{TEMPLATE_HELP} (default: the model's, or vicuna_v1)")
    check.add_argument(
        "--max-length", type=positive, default=2048, metavar="N", help="in tokens (default: %(default)s)"
    )
    check.add_argument(
        "--ignore", nargs="+", choices=KINDS, default=[], metavar="KIND", help=f"one of {', '.join(KINDS)}"
    )
    check.add_argument("--output", type=Path, metavar="DIR", help="write report.json and lengths.png there")
    check.add_argument("--fix", type=Path, metavar="OUT", help="write the records without fault there")
    check.add_argument("--workers", type=int, metavar="N", help="processes that open images (default: one a core)")
    check.set_defaults(run=_check)

    convert = actions.add_parser(
        "convert",
        help="rewrite a training file in another shape",
        description="Between LLaVA's JSON, messages (TRL's, the hub's), ShareGPT's and a datasets folder. In text, "
        "<image> stands for an image and \\<image> for the word itself.",
    )
    convert.add_argument("source", help="as of check, in any of these shapes")
    convert.add_argument("target", type=Path, help="new file (.json: one array, .jsonl: a record a line) or folder")
    convert.add_argument("--to", choices=SHAPES, help="default: llava; of a target without an ending datasets")
    convert.add_argument("--images", metavar="DIR", help="folder or tar files that the records' images are in")
    convert.set_defaults(run=_convert)


def _convert(args: argparse.Namespace) -> None:
    from llava_s2.data.convert_records import convert_records

    shape = args.to or ("llava" if args.target.suffix else "datasets")
    if args.target.exists() and args.target.resolve() == Path(args.source).resolve():
        raise InputError(f"{args.target}: is the file to convert; name another one")
    print(f"{args.target}: {convert_records(args.source, args.target, shape, args.images):,} records, {shape}")


def _things(args: argparse.Namespace) -> None:
    from llava_s2.synthetic.scene_files import write_captions, write_instructions, write_vstar
    from llava_s2.synthetic.scenes import SceneConfig

    if args.first_seed < 0:
        raise InputError(f"--first-seed {args.first_seed}: at least 0")
    try:
        config = SceneConfig(side=tuple(args.side), things=tuple(args.things))
    except ValueError as error:
        raise InputError(str(error)) from error
    if args.kind == "vstar":
        write_vstar(args.folder, args.images, args.images, config=config, first_seed=args.first_seed)
    else:
        write = write_captions if args.kind == "captions" else write_instructions
        write(args.folder, args.images, config=config, first_seed=args.first_seed)
    print(args.folder)


def _check(args: argparse.Namespace) -> int:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # or tokenizers warns of the processes that are forked
    from llava_s2.data.check import check_file, plot_lengths, report, tell, write_clean
    from llava_s2.formats.configs import processor_for_lengths
    from llava_s2.model.templates import OWN, find_template, template_name

    if args.template not in (None, OWN):
        find_template(args.template)
    if args.fix is not None and args.fix.resolve() == Path(args.file).resolve():
        raise InputError(f"--fix {args.fix}: is the file that is checked; name another one")
    processor = None if args.model == "none" else processor_for_lengths(args.model, args.base)
    own = None if processor is None else str(processor.chat_template)
    template = args.template or own or "vicuna_v1"
    workers = len(os.sched_getaffinity(0)) if args.workers is None else args.workers
    check = check_file(
        args.file,
        args.images,
        processor,
        template=template,
        max_length=args.max_length,
        workers=workers if workers > 1 else 0,
        ignored=args.ignore,
    )
    template = template_name(template) or args.template or "the model's"
    told = {"file": args.file, "images": args.images, "model": args.model, "template": template}
    found = report(check, **told, max_length=args.max_length)
    for line in tell(check):
        print(line)
    if processor is not None:
        print(f"counted with the tokens of {args.model}, template {template}; --model names another one")
    if args.output is not None:
        with atomic_write(args.output / "report.json") as partial:
            partial.write_text(json.dumps(found, indent=1, ensure_ascii=False, default=str), "utf-8", errors="replace")
        if processor is not None:
            plot_lengths(check, args.max_length, args.output / "lengths.png")
        print(f"{args.output}: report.json" + ("" if processor is None else " and lengths.png"))
    if args.fix is not None:
        print(f"{args.fix}: {write_clean(check, args.file, args.fix):,} records without fault")
    counts = {kind: entry["count"] for kind, entry in found["faults"].items() if entry["count"]}
    print(json.dumps({"records": check.records, "good": found["good"], "faults": counts}))
    return 1 if check.bad else 0
