"""Numbers of a run and the table that shows them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llava_s2.data.image_decoding import CONVERSIONS
from llava_s2.eval.benchmark import Benchmark, Grade, Sample
from llava_s2.eval.statistics import bootstrap_interval, wilson_interval

OVERALL = "overall"
BAD_IMAGE = "bad_image"
"""Field of a prediction whose image could not be read: the reason."""
REFUSED = "server_refused"
"""Field of a prediction that a server refused to make: the reason."""
FAILED = "server_failed"
"""Field of a prediction that is none, since the server fails: the reason. It ends the run and is in no file."""
WITHOUT_REASONING = "without the reasoning that answers begin with"
"""Of a protocol where that was left out."""
REPLIES = {
    "without_answer": "{count} answer(s) are empty because all {bound} new tokens went into reasoning; raise "
    "--max-new-tokens",
    "too_long": "{count} question(s) are longer, with their answers, than the model's context, so that these mean "
    "little",
    "cut": "{count} answer(s) ended at {bound} new tokens (--max-new-tokens)",
    "reasoning": "{count} answer(s) came with reasoning (<think>…</think>), which is left out",
    "withheld": "{count} answer(s) were withheld by the server (its refusal, if any, stands as the answer)",
    "own_temperature": "{count} answer(s) were drawn at the server's own temperature, since it refuses 0; another run "
    "may differ",
}
"""What the report counts of replies (``replies``) -> the sentence that tells it."""
_HALF = ("float16", "bfloat16")


def grade_of(benchmark: Benchmark, sample: Sample, record: Mapping[str, Any]) -> Grade | None:
    """The benchmark's grade of a prediction; wrong, whatever an empty text would be, where no model saw it."""
    grade = benchmark.grade(sample, record)
    return Grade(type(grade.correct)(0)) if grade is not None and unseen(record) else grade


def unseen(record: Mapping[str, Any]) -> bool:
    """Whether no model saw the question of a prediction."""
    return BAD_IMAGE in record or REFUSED in record


def graded_record(benchmark: Benchmark, sample: Sample, record: Mapping[str, Any]) -> dict[str, Any]:
    """The prediction with its grade, if it has one."""
    grade = grade_of(benchmark, sample, record)
    return dict(record) if grade is None else {**record, "correct": grade.correct, "parseable": grade.parseable}


def headline(
    benchmark: Benchmark, graded: Sequence[tuple[Sample, Grade]], predictions: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """The benchmark's own figures under ``metrics``, if it has any."""
    found = benchmark.metrics([(s, g, predictions.get(s.id, {"text": ""})) for s, g in graded]) if graded else {}
    return {"metrics": found} if found else {}


def fold_groups(graded: Iterable[tuple[Sample, Grade]]) -> list[tuple[Sample, Grade]]:
    """Makes one of the CircularEval variants of each question (``Sample.group``): right if all of them are.

    Returns:
        Each question once, in order, as the first of its forms.
    """
    groups: dict[str, list[tuple[Sample, Grade]]] = {}
    for sample, grade in graded:
        groups.setdefault(sample.group or sample.id, []).append((sample, grade))
    return [
        (
            forms[0][0],
            Grade(min(grade.correct for _, grade in forms), parseable=all(grade.parseable for _, grade in forms)),
        )
        for forms in groups.values()
    ]


def tally(benchmark: Benchmark, graded: Iterable[tuple[Sample, Grade]]) -> dict[str, dict[str, Any]]:
    """Sums up the grades of each category and of all.

    Args:
        benchmark: whose categories and their order are used.
        graded: every question that belongs in the denominator, once, with its grade.

    Returns:
        For each category met and ``overall``: ``count``; ``correct``, the sum of the grades; ``accuracy``;
        ``interval`` (95 %; Wilson's of right and wrong answers, bootstrap of partial credit); ``unparseable``, of which
        ``unparseable_correct`` count as right all the same.
    """
    grades: dict[str, list[Grade]] = {category: [] for category in benchmark.categories}
    everything = []
    for sample, grade in graded:
        everything.append(grade)
        for category in (sample.category, *sample.also):
            grades.setdefault(category, []).append(grade)
    grades[OVERALL] = everything
    return {category: _summary(listed) for category, listed in grades.items() if listed}


def _summary(grades: Sequence[Grade]) -> dict[str, Any]:
    values = [grade.correct for grade in grades]
    partial = any(isinstance(value, float) for value in values)
    total = math.fsum(values) if partial else sum(values)
    return {
        "count": len(values),
        "correct": total,
        "accuracy": total / len(values),
        "interval": list(bootstrap_interval(values) if partial else wilson_interval(int(total), len(values))),
        "unparseable": sum(not grade.parseable for grade in grades),
        "unparseable_correct": sum(bool(grade.correct) for grade in grades if not grade.parseable),
    }


def format_results(benchmark: Benchmark, results: Mapping[str, Mapping[str, Any]]) -> str:
    """The results as a table for a terminal, one row a category."""
    headings = {**benchmark.categories, OVERALL: OVERALL}
    rows = [("", "correct", "accuracy", "95 % interval")]
    for category, row in results.items():
        low, high = row["interval"]
        correct = f"{row['correct']:.1f}" if isinstance(row["correct"], float) else str(row["correct"])
        counts = f"{correct} of {row['count']}"
        digits = 2 if isinstance(row["correct"], float) else 1
        cells = (f"{value:.{digits}%}" for value in (row["accuracy"], low, high))
        rows.append((headings.get(category, category), counts, next(cells), " to ".join(cells)))
    return format_table(rows)


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Aligns the cells: the first column left, the others right; a rule under the first row."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def format_report(benchmark: Benchmark, report: Mapping[str, Any]) -> str:
    """A finished run as its user sees it: what was measured, the table, and what the numbers depend on."""
    lines = [
        f"{report['task']}: {report['model']}",
        f"protocol: {report['protocol']}",
        "",
    ]
    if report["results"]:
        lines += [format_results(benchmark, report["results"]), ""]
        if report.get("metrics"):
            lines += [format_metrics(report["metrics"]), ""]
    else:
        lines += [benchmark.without_judge or "no score: the data has no answers, only the benchmark's server does", ""]
    lines.append(f"{report['seconds_per_image']:.2f} s a question")
    if report.get("submission"):
        lines.append(f"for the benchmark's server: {report['submission']}")
    return "\n".join([*lines, *notes(report)])


def format_metrics(metrics: Mapping[str, float]) -> str:
    """The benchmark's own figures, a line each."""
    width = max(map(len, metrics))
    return "\n".join(f"{name.ljust(width)}  {value:.4g}" for name, value in metrics.items())


def notes(report: Mapping[str, Any]) -> list[str]:
    """What a reader of the scores must know: sentences, each from its own count."""
    found = []
    overall = report["results"].get(OVERALL, {}) if report["results"] else {}
    if unread := overall.get("unparseable"):
        right = overall.get("unparseable_correct", 0)
        fate = f"{right} of them count as right all the same, {unread - right} as wrong" if right else "count as wrong"
        found.append(f"{unread} question(s) with an answer that could not be read{':' if right else ';'} {fate}")
    if bad := report.get("bad_images"):
        names = list(dict.fromkeys(bad.values()))
        listed = "; ".join(names[:10]) + ("; …" if len(names) > 10 else "")
        found.append(f"{len(bad)} question(s) count as wrong because their image could not be read: {listed}")
    if refused := report.get("server_refused"):
        reason = next(iter(refused.values()))
        found.append(f"{len(refused)} question(s) count as wrong because the server refused them, as {reason}")
    for key, sentence in REPLIES.items():
        if count := report.get("replies", {}).get(key):
            found.append(sentence.format(count=count, bound=report.get("max_new_tokens")))
    if converted := report.get("converted_images"):
        listed = ", ".join(f"{CONVERSIONS.get(name, name)}: {count}" for name, count in converted.items())
        found.append(f"images converted while decoding, by question: {listed}")
    if note := near_ties(report):
        found.append(note)
    if report.get("questions_in_data", 0) > (answered := len(report.get("question_ids", ()))):
        found.append(f"on {answered} of {report['questions_in_data']} questions (--limit)")
    return found


def near_ties(report: Mapping[str, Any]) -> str:
    """What to say of a half-precision run's near ties; nothing in float32, which has none."""
    if report.get("dtype") not in _HALF:
        return ""
    count, asked = report.get("near_ties", 0), len(report["question_ids"])
    return (
        f"{count} of {asked} answers were decided by a margin within {report['dtype']}'s rounding; another batch size "
        "or device may change them"
    )
