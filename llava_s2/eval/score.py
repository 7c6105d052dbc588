"""Scoring a predictions file that any program may have written."""

from collections import Counter
from pathlib import Path
from typing import Any

from llava_s2.errors import InputError
from llava_s2.eval.benchmark import Benchmark, Grade, Sample
from llava_s2.eval.judge import JudgeSource
from llava_s2.eval.judging import CACHE, judge_predictions
from llava_s2.eval.openai_servers import without_reasoning
from llava_s2.eval.report import WITHOUT_REASONING, fold_groups, grade_of, headline, tally
from llava_s2.eval.run_folder import read_predictions


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
        ``judge``: its name and account; and ``models`` if the answers are of several (``model_id``).

    Raises:
        InputError: data or file cannot be read, the data has no answers, or a judge is missing or fails.
    """
    samples = benchmark.load(data, None)
    records = read_predictions(predictions)
    models = dict.fromkeys(str(record["model_id"]) for record in records if record.get("model_id"))
    found, unknown, double = _assign(samples, records)
    reasoned = 0
    for identity, record in found.items():
        spoken = without_reasoning(record["text"])
        if spoken != record["text"]:
            found[identity] = {**record, "text": spoken}
            reasoned += 1
    missing = [sample.id for sample in samples if sample.id not in found]
    notes: dict[str, Any] = {}
    if judge is not None:
        answered = [(sample, found[sample.id]) for sample in samples if sample.id in found]
        cache = predictions.with_suffix(f".{CACHE}")
        judged, account = judge_predictions(benchmark, judge, cache, answered)
        found = {sample.id: record for (sample, _), record in zip(answered, judged, strict=True)}
        notes = {"judge": {"name": judged[0]["judge"], "runs": judged[0]["judge_runs"], **account}} if judged else {}
    grades = {sample.id: grade_of(benchmark, sample, found.get(sample.id, {"text": ""})) for sample in samples}
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
    metrics = headline(benchmark, graded, found)
    if benchmark.judge_runs and found:
        notes.setdefault("judge", {}).update(benchmark.judged(list(found.values())))
    graded = fold_groups(graded)
    return {
        "task": benchmark.name,
        **({"variant": benchmark.variant} if benchmark.variant else {}),
        "protocol": _read_by(benchmark) + (f"; {WITHOUT_REASONING}" if reasoned else ""),
        "results": tally(benchmark, graded),
        **metrics,
        **({"judge": notes["judge"]} if notes.get("judge") else {}),
        **({"models": list(models)} if len(models) > 1 else {}),
        **({"replies": {"reasoning": reasoned}} if reasoned else {}),
        "scores": {sample.id: grade.correct for sample, grade in graded},
        "missing": missing,
        "unknown": unknown,
        "double": double,
    }


def _read_by(benchmark: Benchmark) -> str:
    return benchmark.protocol("generate" if "generate" in benchmark.protocols else benchmark.default_scoring)


def _assign(
    samples: list[Sample], records: list[dict[str, Any]]
) -> tuple[dict[str, dict[str, Any]], list[str], list[str]]:
    """Which prediction is which question's, by id; then the ids that are unknown, and those that are there twice.

    An alias that several questions share (LLaVA's answers to TextVQA and MME have the image's name for an id) is told
    apart by the record's ``prompt``; without one, the file must have it as often as the data, in the same order.
    """
    ids = {sample.id: sample for sample in samples}
    aliases: dict[str, list[Sample]] = {}
    for rank in range(max(len(sample.aliases) for sample in samples)):
        ranked: dict[str, list[Sample]] = {}
        for sample in samples:
            if rank < len(sample.aliases):
                ranked.setdefault(sample.aliases[rank], []).append(sample)
        aliases = ranked | aliases  # earlier kinds of alias win
    counts = Counter(record["question_id"] for record in records)
    turns: Counter[str] = Counter()
    found: dict[str, dict[str, Any]] = {}
    unknown: list[str] = []
    double: list[str] = []
    for record in records:
        name = record["question_id"]
        named = [ids[name]] if name in ids else aliases.get(name, [])
        if len(named) > 1:
            asked = [sample for sample in named if _asks(sample, record.get("prompt"))]
            turn = turns[name]
            turns[name] += 1
            named = asked if len(asked) == 1 else named[turn : turn + 1] if counts[name] == len(named) else []
        if not named:
            unknown.append(name)
        elif named[0].id in found:
            double.append(name)
        else:
            found[named[0].id] = record
    return found, unknown, double


def _asks(sample: Sample, prompt: Any) -> bool:
    """Whether a prompt that another program kept is this question's: it begins with the same line."""
    lines = prompt.replace("<image>", "").strip().splitlines() if isinstance(prompt, str) else []
    return bool(lines) and lines[0].strip().lower() == sample.prompt.splitlines()[0].strip().lower()
