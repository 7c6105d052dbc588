"""``llava-s2 data``: checks and makes data sets."""

import argparse
import json
import os
from pathlib import Path

from llava_s2.data.faults import KINDS
from llava_s2.errors import InputError
from llava_s2.model.arguments import positive
from llava_s2.model.embedded import NAME


def add_commands(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``data`` to the command line."""
    parser = subparsers.add_parser("data", help="check a training file; make data sets")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    scenes = actions.add_parser("scenes", help="draw small named things on photographs, and questions about them")
    scenes.add_argument("kind", choices=("captions", "instructions", "vstar"))
    scenes.add_argument("folder", type=Path, help="new folder: LLaVA JSON and images, or a V* folder")
    scenes.add_argument("--images", type=int, default=400, help="for vstar: of each kind (default: %(default)s)")
    two = {"nargs": 2, "metavar": ("MIN", "MAX")}
    scenes.add_argument(
        "--side", type=int, default=(1000, 4000), help="longer side in pixels; default: 1000 4000", **two
    )
    scenes.add_argument(
        "--thing-share",
        type=float,
        default=(0.031, 0.045),
        help="a thing's side as a share of the image's; default: 0.031 0.045",
        **two,
    )
    scenes.add_argument("--things", type=int, default=(3, 6), help="default: 3 6", **two)
    scenes.add_argument("--first-seed", type=int, default=0, help="seed of the first image (default: %(default)s)")
    scenes.set_defaults(run=_scenes)

    check = actions.add_parser(
        "check",
        help="look at every record and image of a training file",
        description="The last line printed is one JSON object. Exit status: 0 without a fault, 1 with any.",
    )
    check.add_argument("file", help="LLaVA's JSON or JSON lines, a datasets folder, Parquet files or webdataset shards")
    check.add_argument("--images", metavar="DIR", help="folder or tar files that the records' images are in")
    check.add_argument(
        "--model",
        default=NAME,
        metavar="M",
        help="whose tokens to count: a LLaVA or a language model, folder or hub id; none leaves them out "
        "(default: the embedded one)",
    )
    check.add_argument("--base", metavar="B", help="language model under an adapter")
    check.add_argument("--template", help="conversation template (default: the model's, or vicuna_v1)")
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


def _scenes(args: argparse.Namespace) -> None:
    from llava_s2.synthetic.scene_files import write_captions, write_instructions, write_vstar
    from llava_s2.synthetic.scenes import SceneConfig

    if args.folder.exists():
        raise InputError(f"{args.folder}: is there already; name a new folder")
    if args.images < 1:
        raise InputError(f"--images {args.images}: must be at least 1")
    try:
        config = SceneConfig(tuple(args.side), tuple(args.thing_share), tuple(args.things))
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
    from llava_s2.model.lengths_only import processor_for_lengths
    from llava_s2.model.templates import TEMPLATES

    if args.template not in (None, *TEMPLATES):
        raise InputError(f"--template {args.template}: not known; use one of {', '.join(TEMPLATES)}")
    if args.fix is not None and args.fix.resolve() == Path(args.file).resolve():
        raise InputError(f"--fix {args.fix}: is the file that is checked; name another one")
    processor = None if args.model == "none" else processor_for_lengths(args.model, args.base)
    own = next((name for name, text in TEMPLATES.items() if processor and processor.chat_template == text), "vicuna_v1")
    template = args.template or own
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
    told = {"file": args.file, "images": args.images, "model": args.model, "template": template}
    found = report(check, **told, max_length=args.max_length)
    for line in tell(check):
        print(line)
    if processor is not None:
        print(f"counted with the tokens of {args.model}, template {template}; --model names another one")
    if args.output is not None:
        args.output.mkdir(parents=True, exist_ok=True)
        aside = args.output / ".report.json"
        aside.write_text(json.dumps(found, indent=1, ensure_ascii=False, default=str), "utf-8", errors="replace")
        aside.replace(args.output / "report.json")
        if processor is not None:
            plot_lengths(check, args.max_length, args.output / "lengths.png")
        print(f"{args.output}: report.json" + ("" if processor is None else " and lengths.png"))
    if args.fix is not None:
        print(f"{args.fix}: {write_clean(check, args.file, args.fix):,} records without fault")
    counts = {kind: entry["count"] for kind, entry in found["faults"].items() if entry["count"]}
    print(json.dumps({"records": check.records, "good": found["good"], "faults": counts}))
    return 1 if check.bad else 0
