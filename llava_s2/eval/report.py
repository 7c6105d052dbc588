"""Numbers of a run and the table that shows them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llava_s2.eval.benchmark import Benchmark, Grade, Sample
from llava_s2.eval.statistics import bootstrap_interval, wilson_interval

OVERALL = "overall"
_HALF = ("float16", "bfloat16")


def fold_groups(graded: Iterable[tuple[Sample, Grade]]) -> list[tuple[Sample, Grade]]:
    """Makes one of the questions that are forms of the same one (``Sample.group``): right if all of them are.

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
        ``interval`` (95 %; Wilson's of right and wrong answers, bootstrap of grades with shades); ``unparseable``.
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
    shaded = any(isinstance(value, float) for value in values)
    total = math.fsum(values) if shaded else sum(values)
    return {
        "count": len(values),
        "correct": total,
        "accuracy": total / len(values),
        "interval": list(bootstrap_interval(values) if shaded else wilson_interval(int(total), len(values))),
        "unparseable": sum(not grade.parseable for grade in grades),
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
    else:
        lines += [benchmark.without_judge or "no score: the data has no answers, only the benchmark's server does", ""]
    lines.append(f"{report['seconds_per_image']:.2f} s an image")
    if report.get("submission"):
        lines.append(f"for the benchmark's server: {report['submission']}")
    if report["results"] and (unparseable := report["results"][OVERALL]["unparseable"]):
        lines.append(f"{unparseable} answer(s) name no option and count as wrong")
    if note := near_ties(report):
        lines.append(note)
    if report["questions_in_data"] > (answered := len(report["question_ids"])):
        lines.append(f"on {answered} of {report['questions_in_data']} questions (--limit)")
    return "\n".join(lines)


def near_ties(report: Mapping[str, Any]) -> str:
    """What to say of a half-precision run's near ties; nothing in float32, which has none."""
    if report.get("dtype") not in _HALF:
        return ""
    count, asked = report.get("near_ties", 0), len(report["question_ids"])
    return (
        f"{count} of {asked} answers were decided by a margin within {report['dtype']}'s rounding; another batch size "
        "or device may change them"
    )
