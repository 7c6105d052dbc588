"""``llava-s2 eval``, ``score``, ``compare`` and ``report``."""

import argparse
import json
import os
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_s2.errors import InputError
from llava_s2.eval.score_loggers import LOGGERS
from llava_s2.formats.model_source import ModelSource, add_model_arguments, positive

if TYPE_CHECKING:
    from llava_s2.eval.benchmark import Benchmark
    from llava_s2.eval.judge import JudgeSource
    from llava_s2.eval.runner import Model

TASKS = {
    "vstar": ("llava_s2.eval.vstar", "VStar"),
    "vqav2": ("llava_s2.eval.vqav2", "VQAv2"),
    "textvqa": ("llava_s2.eval.textvqa", "TextVQA"),
    "vizwiz": ("llava_s2.eval.vizwiz", "VizWiz"),
    "mmmu": ("llava_s2.eval.mmmu", "MMMU"),
    "mathvista": ("llava_s2.eval.mathvista", "MathVista"),
    "mmbench": ("llava_s2.eval.mmbench", "MMBench"),
    "seedbench": ("llava_s2.eval.seedbench", "SEEDBench"),
    "mmvet": ("llava_s2.eval.mmvet", "MMVet"),
    "pope": ("llava_s2.eval.pope", "POPE"),
    "gqa": ("llava_s2.eval.gqa", "GQA"),
    "scienceqa": ("llava_s2.eval.scienceqa", "ScienceQA"),
    "mme": ("llava_s2.eval.mme", "MME"),
    "llavabench": ("llava_s2.eval.llavabench", "LLaVABench"),
    "hrbench": ("llava_s2.eval.hrbench", "HRBench"),
    "mmerealworld": ("llava_s2.eval.mmerealworld", "MMERealWorld"),
    "chartqa": ("llava_s2.eval.chartqa", "ChartQA"),
    "docvqa": ("llava_s2.eval.docvqa", "DocVQA"),
    "infovqa": ("llava_s2.eval.docvqa", "InfoVQA"),
    "ocrbench": ("llava_s2.eval.ocrbench", "OCRBench"),
    "realworldqa": ("llava_s2.eval.realworldqa", "RealWorldQA"),
    "ai2d": ("llava_s2.eval.ai2d", "AI2D"),
    "mmstar": ("llava_s2.eval.mmstar", "MMStar"),
    "mmvp": ("llava_s2.eval.mmvp", "MMVP"),
    "blink": ("llava_s2.eval.blink", "BLINK"),
    "mmmupro": ("llava_s2.eval.mmmupro", "MMMUPro"),
}
"""Name of a task -> module and class of its benchmark."""


def add_commands(subparsers: argparse._SubParsersAction) -> None:
    """Adds the commands to the command line."""
    parser = subparsers.add_parser("eval", help="evaluate a model on a benchmark")
    parser.add_argument(
        "tasks", nargs="*", type=_task, metavar="TASK", help=f"one, several, or all: {', '.join(TASKS)}"
    )
    parser.add_argument(
        "--config", type=Path, metavar="F.yaml", help="a suite: flags, and tasks with flags of their own"
    )
    add_model_arguments(parser, required=False)
    _add_remote_arguments(parser)
    _add_data_arguments(parser, required=False)
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="folder of this run, or of several; what was cut off continues"
    )
    parser.add_argument("--download", action="store_true", help="fetch the data from the hub into --data first")
    parser.add_argument("--report_to", nargs="+", default=[], choices=LOGGERS, help="also log the scores there")
    parser.add_argument("--scoring", choices=("likelihood", "generate"), help="default: the benchmark's own protocol")
    parser.add_argument(
        "--limit", type=positive, metavar="N", help="only N questions, spread evenly over the categories"
    )
    parser.add_argument(
        "--batch-size",
        type=_batch_size,
        metavar="B",
        help="most questions at once, or auto: what the memory takes; too many are halved (default: auto)",
    )
    parser.add_argument(
        "--max-new-tokens",
        type=positive,
        metavar="N",
        help="bound on a generated answer; models that reason before it need more (default: the benchmark's own)",
    )
    parser.add_argument(
        "--on-bad-image",
        choices=("error", "skip"),
        default="error",
        help="where an image cannot be read, or a server refuses a question: stop, or count it as wrong and name it "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--exif",
        choices=("turn", "ignore"),
        default="turn",
        help="EXIF orientation of images; the benchmarks' own code ignores it (default: %(default)s)",
    )
    parser.add_argument(
        "--image-mode",
        choices=("pad", "resize", "square"),
        help="how images become squares: padded, stretched or cropped (default: the checkpoint's own)",
    )
    parser.add_argument(
        "--text-only", action="store_true", help="leave the images out: what do the questions alone give away?"
    )
    _add_judge_arguments(parser)
    parser.set_defaults(run=_eval)

    parser = subparsers.add_parser(
        "score", help="score a predictions file", description="The last line printed is one JSON object."
    )
    parser.add_argument("task", choices=TASKS)
    _add_data_arguments(parser)
    parser.add_argument(
        "--predictions", required=True, type=Path, metavar="F.jsonl", help='lines of {"question_id": …, "text": "…"}'
    )
    _add_judge_arguments(parser)
    parser.set_defaults(run=_score)

    parser = subparsers.add_parser(
        "compare", help="compare two runs, paired", description="The last line printed is one JSON object."
    )
    parser.add_argument(
        "run_a", type=Path, metavar="RUN_A", help="output folder of llava-s2 eval, or another kit's log"
    )
    parser.add_argument("run_b", type=Path, metavar="RUN_B", help="likewise")
    parser.set_defaults(run=_compare)

    parser = subparsers.add_parser("report", help="put any number of runs side by side: report.md and report.png")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="output folder of llava-s2 eval")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder for the files")
    parser.add_argument(
        "--html",
        action="store_true",
        help="also report.html: every question with image and answers; takes the data",
    )
    parser.set_defaults(run=_report)


def _add_remote_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("server", "an OpenAI-compatible server that answers in place of a local model")
    group.add_argument("--model-url", metavar="URL", help="base of its API; --model then names the model there")
    group.add_argument(
        "--model-key-variable",
        default="OPENAI_API_KEY",
        metavar="VAR",
        help="environment variable that holds its key (default: %(default)s)",
    )
    group.add_argument(
        "--model-concurrency", type=positive, default=16, metavar="N", help="requests at once (default: %(default)s)"
    )


def _add_data_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    parser.add_argument(
        "--data", required=required, type=Path, metavar="DIR", help="the data folder; of several tasks, the one above"
    )
    parser.add_argument(
        "--variant",
        metavar="V",
        help="split or setting of the data, such as val (default: the first that is there)",
    )
    parser.add_argument(
        "--rule", metavar="R", help="how the option that an answer names is read (default: the benchmark's own)"
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", help="guess where an answer cannot be read, as mmmu's code does"
    )


def _add_judge_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("judge", "a language model that grades mmvet and reads mathvista's answers")
    group.add_argument("--judge-url", metavar="URL", help="base of an OpenAI-compatible API, such as https://HOST/v1")
    group.add_argument("--judge-model", metavar="NAME", help="its model; the published numbers are gpt-4-0613's")
    group.add_argument(
        "--judge-key-variable",
        default="OPENAI_API_KEY",
        metavar="VAR",
        help="environment variable that holds the key (default: %(default)s)",
    )
    group.add_argument("--judge-runs", type=positive, metavar="N", help="times each answer is graded (default: 5)")
    group.add_argument(
        "--judge-concurrency", type=positive, default=8, metavar="N", help="requests at once (default: %(default)s)"
    )
    group.add_argument(
        "--judge-timeout",
        type=positive,
        default=60,
        metavar="S",
        help="seconds until an answer is asked for again (default: %(default)s)",
    )
    group.add_argument(
        "--judge-prices",
        type=float,
        nargs=2,
        metavar=("IN", "OUT"),
        help="US dollars a million prompt and completion tokens, for the cost line",
    )


def _judge_source(args: argparse.Namespace) -> "JudgeSource | None":
    """The judge that the flags name, None if they name none."""
    from llava_s2.eval.judge import JudgeSource

    if args.judge_url is None and args.judge_model is None:
        return None
    if args.judge_url is None or args.judge_model is None:
        raise InputError("a judge takes both --judge-url and --judge-model")
    return JudgeSource(
        url=args.judge_url,
        model=args.judge_model,
        key_variable=args.judge_key_variable,
        runs=args.judge_runs,
        concurrency=args.judge_concurrency,
        timeout=args.judge_timeout,
        prices=tuple(args.judge_prices) if args.judge_prices else None,
    )


def _batch_size(text: str) -> int | None:
    return None if text == "auto" else positive(text)


def _benchmark(args: argparse.Namespace) -> "Benchmark":
    module, name = TASKS[args.task]
    return getattr(import_module(module), name)(args.variant, args.seed, args.rule)


def _eval(args: argparse.Namespace) -> int:
    from llava_s2.eval.score_loggers import check_loggers
    from llava_s2.eval.suite import entries, format_outcomes, read_config, run_suite

    suite = args.config is not None or len(args.tasks) > 1 or args.tasks == ["all"]
    if args.config is not None:
        read_config(args.config, args, _flags())
        if args.tasks and args.tasks != ["all"]:
            args.entries = {name: args.entries.get(name) for name in args.tasks}
    elif suite:
        args.entries = dict.fromkeys(TASKS if args.tasks == ["all"] else args.tasks)
    elif not args.tasks:
        raise InputError("name a task, several, or all; or a suite with --config")
    if lacking := [flag for flag in ("model", "data", "output") if getattr(args, flag) is None]:
        raise InputError(f"llava-s2 eval takes --{', --'.join(lacking)}")
    check_loggers(args.report_to)
    model = _model(args)
    if not suite:
        args.task = args.tasks[0]
        _eval_one(args, model)
        return 0
    outcomes = run_suite(entries(args, TASKS, _benchmark), lambda own: _eval_one(own, model))
    nothing = False
    if int(os.environ.get("RANK", "0")) == 0:
        _print_table11([args.output])
        print(format_outcomes(outcomes))
        nothing = not any(outcome.report for outcome in outcomes)
    return 2 if nothing or any(outcome.reason.startswith("failed") for outcome in outcomes) else 0


def _of_task(task: str, variant: str | None) -> "Benchmark":
    module, name = TASKS[task]
    return getattr(import_module(module), name)(variant)


def _task(name: str) -> str:
    """Checked here, since argparse also checks an empty list against its ``choices``."""
    if name not in (*TASKS, "all"):
        raise argparse.ArgumentTypeError(f"{name!r} is not known; use all or {', '.join(TASKS)}")
    return name


def _flags() -> dict[str, argparse.Action]:
    """The flags of ``llava-s2 eval`` by their names with underscores."""
    subparsers = argparse.ArgumentParser().add_subparsers()
    add_commands(subparsers)
    return {action.dest: action for action in subparsers.choices["eval"]._actions if action.dest != "help"}


def _print_table11(folders: list[Path]) -> None:
    from llava_s2.eval.table11 import ROWS, format_table11, read_reports

    try:
        models = read_reports(folders)
    except InputError:
        return
    if any(report["task"] in {row.task for row in ROWS} for reports in models.values() for report in reports):
        print(format_table11(models)[0])


def _model(args: argparse.Namespace) -> "Model":
    from llava_s2.eval.local_model import LocalModel
    from llava_s2.eval.remote_model import RemoteModel

    if args.model_url is not None:
        return RemoteModel(args.model_url, args.model, args.model_key_variable, args.model_concurrency)
    return LocalModel(ModelSource.from_arguments(args), args.image_mode)


def _eval_one(args: argparse.Namespace, model: "Model") -> "Mapping[str, Any] | None":
    from llava_s2.eval.document import write_document
    from llava_s2.eval.download import download, revision_of
    from llava_s2.eval.judging import finish_run, format_judge
    from llava_s2.eval.report import format_report
    from llava_s2.eval.run_folder import REPORT, write_json
    from llava_s2.eval.runner import evaluate
    from llava_s2.eval.score_loggers import log_scores

    benchmark = _benchmark(args)
    judge = _judge_source(args)
    if judge is not None and not benchmark.judge_runs:
        if "entries" not in args:
            raise InputError(f"{benchmark.name} is graded by rules; leave out --judge-url")
        judge = None
    if args.download:
        download(benchmark, args.data)
    report = evaluate(
        benchmark,
        model,
        args.data,
        args.output,
        scoring=args.scoring,
        limit=args.limit,
        batch_size=args.batch_size,
        max_new_tokens=args.max_new_tokens,
        text_only=args.text_only,
        on_bad_image=args.on_bad_image,
        exif=args.exif,
    )
    if report is None:  # several processes have one report
        return None
    if benchmark.judge_runs:
        report = finish_run(benchmark, judge, args.data, args.output)
    if revision := revision_of(benchmark, args.data):
        report["data_revision"] = revision
        write_json(args.output / REPORT, report)
    print(format_report(benchmark, report))
    if "judge" in report:
        print(format_judge(report["judge"]))
    elif benchmark.without_judge and report["results"]:
        print(benchmark.without_judge)
    for path in write_document([args.output], args.output):
        print(path)
    log_scores(args.report_to, report, args.output)
    return report


def _score(args: argparse.Namespace) -> int:
    from llava_s2.eval.judging import format_judge
    from llava_s2.eval.report import format_metrics, format_results, notes
    from llava_s2.eval.score import score

    benchmark = _benchmark(args)
    scored = score(benchmark, args.data, args.predictions, _judge_source(args))
    faults = {kind: scored[kind] for kind in ("unknown", "missing", "double") if scored[kind]}
    for kind, ids in faults.items():
        listed = ", ".join(ids[:10]) + (", …" if len(ids) > 10 else "")
        print(f"llava-s2: error: {args.predictions}: {len(ids)} {kind} question id(s): {listed}", file=sys.stderr)
    print(f"protocol: {scored['protocol']}\n\n{format_results(benchmark, scored['results'])}")
    if "metrics" in scored:
        print(f"\n{format_metrics(scored['metrics'])}")
    for note in notes(scored):
        print(note)
    if models := scored.get("models"):
        print(f"the answers are of {len(models)} models: {', '.join(models)}")
    if scored.get("judge", {}).get("name"):
        print(format_judge(scored["judge"]))
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
    if args.html:
        from llava_s2.eval.viewer import write_viewer

        print(write_viewer(args.runs, args.output, _of_task))
