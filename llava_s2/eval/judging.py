"""Predictions and their judge: which are graded, by whom, and what that makes of a run."""

from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llava_s2.errors import InputError
from llava_s2.eval.benchmark import Benchmark, Sample
from llava_s2.eval.compare import read_report
from llava_s2.eval.judge import Judge, JudgeSource, Stopped
from llava_s2.eval.report import fold_groups, grade_of, graded_record, headline, tally
from llava_s2.eval.run_folder import PREDICTIONS, REPORT, read_predictions, write_json, write_records

CACHE = "judge.jsonl"
"""In a run's folder: the judge's answers, so that none is asked for twice."""


def judge_predictions(
    benchmark: Benchmark, source: JudgeSource, cache: Path, pairs: Sequence[tuple[Sample, Mapping[str, Any]]]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Has every prediction judged that this judge has not judged yet.

    Args:
        benchmark: whose questions they are.
        source: the judge.
        cache: where its answers are kept.
        pairs: questions and their predictions.

    Returns:
        The predictions with the judge's verdicts, in order; and the account of ``Judge.account``.

    Raises:
        InputError: the benchmark has no use for a judge, or the judge fails for good; what it said until then is kept.
    """
    if not benchmark.judge_runs:
        raise InputError(f"{benchmark.name} is graded by rules; leave out --judge-url")
    if source.runs and benchmark.judge_runs == 1:
        raise InputError(f"{benchmark.name} asks a judge once; leave out --judge-runs")
    runs = source.runs or benchmark.judge_runs
    with Judge(source, cache) as judge, ThreadPoolExecutor(source.concurrency) as pool:
        seal = {"judge": judge.name, "judge_runs": runs}

        def verdict(sample: Sample, prediction: Mapping[str, Any]) -> dict[str, Any]:
            if all(prediction.get(key) == value for key, value in seal.items()):
                return dict(prediction)
            return {**prediction, **benchmark.judge(judge.ask, sample, prediction, runs), **seal}

        futures: list[Future[dict[str, Any]]] = [pool.submit(verdict, *pair) for pair in pairs]
        bar = tqdm(total=len(futures), desc=f"{benchmark.name}, judge", unit="answer", delay=1)
        try:
            for future in futures:
                future.add_done_callback(lambda _: bar.update())
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:  # also on Ctrl-C: waiting requests give up, finished ones are in the cache
            judge.stop()
            pool.shutdown(cancel_futures=True)
            bar.close()
        ended = [future.exception() for future in futures if not future.cancelled()]
        for fault in ended:
            if isinstance(fault, InputError):
                whole = ended.count(None)
                raise InputError(f"{fault} ({whole} of {len(pairs)} answers are judged and kept; run again to go on)")
            if fault is not None and not isinstance(fault, Stopped):
                raise fault
        return [future.result() for future in futures], judge.account()


def finish_run(benchmark: Benchmark, source: JudgeSource | None, data: Path, output: Path) -> dict[str, Any]:
    """Grades a run whose answers a judge grades: rewrites its ``predictions.jsonl`` and ``report.json``.

    Args:
        benchmark: the task, as the run had it.
        source: the judge; None keeps the verdicts that there are.
        data: the data folder.
        output: the run's folder, with every prediction made.

    Returns:
        The report, with ``judge``: its name, runs, account and what the benchmark says of it; without results if no
        prediction of a benchmark that needs a judge has a verdict.

    Raises:
        InputError: see ``judge_predictions``; or some predictions have verdicts and others none.
    """
    report = read_report(output)
    samples = {sample.id: sample for sample in benchmark.load(data, report["scoring"])}
    records = read_predictions(output / PREDICTIONS)
    asked = set(report["question_ids"])
    pairs = [(samples[r["question_id"]], r) for r in records if r["question_id"] in asked]
    account: dict[str, Any] = {}
    if source is not None:
        verdicts, account = judge_predictions(benchmark, source, output / CACHE, pairs)
        pairs = [(sample, record) for (sample, _), record in zip(pairs, verdicts, strict=True)]
    judges = {(record.get("judge"), record.get("judge_runs")) for _, record in pairs}
    if len(judges) > 1:
        some = sum(record.get("judge") is not None for _, record in pairs)
        raise InputError(
            f"{output}: {some} of {len(pairs)} predictions have been judged, by {_names(judges)}; "
            "name one judge for all with --judge-url and --judge-model"
        )
    ((name, runs),) = judges
    if name is None:
        if not report["results"]:
            report["unscored"] = benchmark.without_judge
            write_json(output / REPORT, report)
        return report
    report["protocol"] += f", judged by {name}, {runs} run(s)"
    grades = {sample.id: grade_of(benchmark, sample, record) for sample, record in pairs}
    graded = [(sample, grade) for sample, _ in pairs if (grade := grades[sample.id]) is not None]
    by_id = {sample.id: graded_record(benchmark, sample, record) for sample, record in pairs}
    write_records(output / PREDICTIONS, [by_id.get(record["question_id"], record) for record in records])
    report["results"] = tally(benchmark, fold_groups(graded))
    report |= headline(benchmark, graded, by_id)
    report["judge"] = {"name": name, "runs": runs, **benchmark.judged(list(by_id.values())), **account}
    write_json(output / REPORT, report)
    return report


def format_judge(judge: Mapping[str, Any]) -> str:
    """The judge's part of a report as its user sees it."""
    lines = [f"judge: {judge['name']}, {judge['runs']} run(s)"]
    if "totals" in judge:
        totals = ", ".join(f"{total:.1%}" for total in judge["totals"])
        lines.append(f"totals of the runs: {totals}; standard deviation {100 * judge['spread']:.1f} points")
    if "requests" in judge:
        lines.append(
            f"cost: {judge['requests']} requests, {judge['cached']} answers from the cache, {judge['retries']} "
            f"retries; {judge['prompt_tokens']:,} prompt and {judge['completion_tokens']:,} completion tokens in all"
            + (f", ${judge['dollars']:,.2f}" if "dollars" in judge else "")
        )
    if drawn := judge.get("own_temperature"):
        lines.append(f"{drawn} verdicts were drawn at the judge's own temperature, since it refuses the official one")
    return "\n".join(lines)


def _names(judges: set[tuple[Any, Any]]) -> str:
    return " and ".join(sorted(f"{name} ({runs} runs)" for name, runs in judges if name))
