"""Scoring a predictions file that any program may have written."""

from collections import Counter
from pathlib import Path
from typing import Any

from llava_s2.errors import InputError
from llava_s2.eval.benchmark import Benchmark, Grade, Sample
from llava_s2.eval.judge import JudgeSource
from llava_s2.eval.judging import CACHE, judge_predictions
from llava_s2.eval.predictions import read_predictions
from llava_s2.eval.report import fold_groups, tally


def score(benchmark: Benchmark, data: Path, predictions: Path, judge: JudgeSource | None = None) -> dict[str, Any]:
    """Scores the file over all questions of the benchmark.

    Args:
        benchmark: the task.
        data: its data folder.
        predictions: JSON lines with ``question_id`` and ``text``; verdicts of a judge in it count as they stand.
        judge: grades what it has not graded yet; keeps its answers beside the file, as ``NAME.judge.jsonl``.

    Returns:
        ``task``; ``variant`` of its data, if it has several; ``results`` (see ``tally``; a question without prediction
        counts as wrong); ``scores``, the grade of each question by id; and the lists ``missing``, ``unknown`` and
        ``double`` of ids. The file is sound if all three are empty. The first of a double id counts. With a judge also
        ``judge``: its name and account.

    Raises:
        InputError: data or file cannot be read, the data has no answers, or a judge is missing or fails.
    """
    samples = benchmark.load(data, None)
    names = _names(samples)
    found: dict[str, dict[str, Any]] = {}
    unknown: list[str] = []
    double: list[str] = []
    for record in read_predictions(predictions):
        identity = names.get(record["question_id"])
        if identity is None:
            unknown.append(record["question_id"])
        elif identity in found:
            double.append(record["question_id"])
        else:
            found[identity] = record
    missing = [sample.id for sample in samples if sample.id not in found]
    notes: dict[str, Any] = {}
    if judge is not None:
        answered = [(sample, found[sample.id]) for sample in samples if sample.id in found]
        cache = predictions.with_suffix(f".{CACHE}")
        judged, account = judge_predictions(benchmark, judge, cache, answered)
        found = {sample.id: record for (sample, _), record in zip(answered, judged, strict=True)}
        notes = {"judge": {"name": judged[0]["judge"], "runs": judged[0]["judge_runs"], **account}} if judged else {}
    grades = {sample.id: benchmark.grade(sample, found.get(sample.id, {"text": ""})) for sample in samples}
    unscored = [identity for identity in (found or grades) if grades[identity] is None]
    if unscored and benchmark.without_judge:
        raise InputError(f"{predictions}: {len(unscored)} answer(s) without a verdict; {benchmark.without_judge}")
    if unscored:
        raise InputError(f"{data}: has no answers to score with; only the benchmark's server does")
    kind = type(next(grade.correct for grade in grades.values() if grade is not None))
    graded = [
        (sample, grade if sample.id in found and grade is not None else Grade(correct=kind(0)))
        for sample in samples
        for grade in [grades[sample.id]]
    ]
    if benchmark.judge_runs and found:
        notes.setdefault("judge", {}).update(benchmark.judged(list(found.values())))
    graded = fold_groups(graded)
    return {
        "task": benchmark.name,
        **({"variant": benchmark.variant} if benchmark.variant else {}),
        "results": tally(benchmark, graded),
        **({"judge": notes["judge"]} if notes.get("judge") else {}),
        "scores": {sample.id: grade.correct for sample, grade in graded},
        "missing": missing,
        "unknown": unknown,
        "double": double,
    }


def _names(samples: list[Sample]) -> dict[str, str]:
    """Every way to name a question -> its id. Earlier kinds of alias win; a name that two questions share is none."""
    names: dict[str, str] = {}
    for rank in reversed(range(max(len(sample.aliases) for sample in samples))):
        pairs = [(sample.aliases[rank], sample.id) for sample in samples if rank < len(sample.aliases)]
        shared = Counter(alias for alias, _ in pairs)
        names |= {alias: identity for alias, identity in pairs if shared[alias] == 1}
    return names | {sample.id: sample.id for sample in samples}
