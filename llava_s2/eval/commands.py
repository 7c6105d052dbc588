"""``llava-s2 eval``, ``score``, ``compare`` and ``report``."""

import argparse
import json
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from llava_s2.model.arguments import ModelSource, add_model_arguments, positive

if TYPE_CHECKING:
    from llava_s2.eval.benchmark import Benchmark

TASKS = {
    "vstar": ("llava_s2.eval.vstar", "VStar"),
    "vqav2": ("llava_s2.eval.vqav2", "VQAv2"),
    "textvqa": ("llava_s2.eval.textvqa", "TextVQA"),
    "vizwiz": ("llava_s2.eval.vizwiz", "VizWiz"),
    "mmmu": ("llava_s2.eval.mmmu", "MMMU"),
    "mathvista": ("llava_s2.eval.mathvista", "MathVista"),
    "mmbench": ("llava_s2.eval.mmbench", "MMBench"),
    "seedbench": ("llava_s2.eval.seedbench", "SEEDBench"),
}
"""Name of a task -> module and class of its benchmark."""


def add_commands(subparsers: argparse._SubParsersAction) -> None:
    """Adds the commands to the command line."""
    parser = subparsers.add_parser("eval", help="evaluate a model on a benchmark")
    parser.add_argument("task", choices=TASKS)
    add_model_arguments(parser)
    _add_data_arguments(parser)
    parser.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="folder of this run; a run that was cut off continues"
    )
    parser.add_argument("--scoring", choices=("likelihood", "generate"), help="default: the benchmark's own protocol")
    parser.add_argument(
        "--limit", type=positive, metavar="N", help="only N questions, spread evenly over the categories"
    )
    parser.add_argument(
        "--batch-size",
        type=_batch_size,
        default="auto",
        metavar="B",
        help="most questions at once, or auto: what the memory takes; too many are halved (default: %(default)s)",
    )
    parser.add_argument(
        "--text-only", action="store_true", help="leave the images out: what do the questions alone give away?"
    )
    parser.set_defaults(run=_eval)

    parser = subparsers.add_parser(
        "score", help="score a predictions file", description="The last line printed is one JSON object."
    )
    parser.add_argument("task", choices=TASKS)
    _add_data_arguments(parser)
    parser.add_argument(
        "--predictions", required=True, type=Path, metavar="F.jsonl", help='lines of {"question_id": …, "text": "…"}'
    )
    parser.set_defaults(run=_score)

    parser = subparsers.add_parser(
        "compare", help="compare two runs, paired", description="The last line printed is one JSON object."
    )
    parser.add_argument("run_a", type=Path, metavar="RUN_A", help="output folder of llava-s2 eval, the baseline")
    parser.add_argument("run_b", type=Path, metavar="RUN_B", help="output folder of llava-s2 eval")
    parser.set_defaults(run=_compare)

    parser = subparsers.add_parser("report", help="put any number of runs side by side: report.md and report.png")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="output folder of llava-s2 eval")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder for the two files")
    parser.set_defaults(run=_report)


def _add_data_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, type=Path, metavar="DIR", help="the benchmark's data folder")
    parser.add_argument(
        "--variant",
        metavar="V",
        help="split or setting of the data, such as val (default: the first that is there)",
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", help="guess where an answer cannot be read, as mmmu's code does"
    )


def _batch_size(text: str) -> int | None:
    return None if text == "auto" else positive(text)


def _benchmark(args: argparse.Namespace) -> "Benchmark":
    module, name = TASKS[args.task]
    return getattr(import_module(module), name)(args.variant, args.seed)


def _eval(args: argparse.Namespace) -> None:
    from llava_s2.eval.document import write_document
    from llava_s2.eval.report import format_report
    from llava_s2.eval.runner import evaluate

    benchmark = _benchmark(args)
    report = evaluate(
        benchmark,
        ModelSource.from_arguments(args),
        args.data,
        args.output,
        scoring=args.scoring,
        limit=args.limit,
        batch_size=args.batch_size,
        text_only=args.text_only,
    )
    if report is not None:  # several processes have one report
        print(format_report(benchmark, report))
        for path in write_document([args.output], args.output):
            print(path)


def _score(args: argparse.Namespace) -> int:
    from llava_s2.eval.report import format_results
    from llava_s2.eval.score import score

    benchmark = _benchmark(args)
    scored = score(benchmark, args.data, args.predictions)
    faults = {kind: scored[kind] for kind in ("unknown", "missing", "double") if scored[kind]}
    for kind, ids in faults.items():
        listed = ", ".join(ids[:10]) + (", …" if len(ids) > 10 else "")
        print(f"llava-s2: error: {args.predictions}: {len(ids)} {kind} question id(s): {listed}", file=sys.stderr)
    print(format_results(benchmark, scored["results"]))
    print(json.dumps(scored))
    return 2 if faults else 0


def _compare(args: argparse.Namespace) -> None:
    from llava_s2.eval.compare import compare, format_comparison

    comparison = compare(args.run_a, args.run_b)
    print(format_comparison(comparison))
    print(json.dumps(comparison))


def _report(args: argparse.Namespace) -> None:
    from llava_s2.eval.document import write_document

    for path in write_document(args.runs, args.output):
        print(path)
