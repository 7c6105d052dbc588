"""Two runs on the same questions, question by question."""

from pathlib import Path
from typing import Any

from llava_s2.errors import InputError
from llava_s2.eval.report import OVERALL, format_table
from llava_s2.eval.run_folder import PREDICTIONS, REPORT, read_predictions
from llava_s2.eval.statistics import mcnemar_exact, paired_bootstrap, paired_difference
from llava_s2.eval.tables import read_value

MCNEMAR = "exact McNemar test"
PAIRED_BOOTSTRAP = "paired bootstrap"
_LISTED = 200  # ids on a terminal; the JSON has them all


def compare(run_a: Path, run_b: Path) -> dict[str, Any]:
    """Compares two finished runs (output folders of ``llava-s2 eval``).

    Returns:
        ``a`` and ``b`` (folder, model, protocol); ``results`` of each category and of all: ``count``, ``correct_a``,
        ``correct_b``, ``difference`` (accuracy of B minus A), ``interval`` (95 %, paired), ``only_a``, ``only_b``
        (questions that the run got right alone, or better), ``p`` (two-sided); ``test``, which is McNemar's for right
        and wrong answers and a paired bootstrap for grades with shades; ``differing``, the ids of ``only_*``.

    Raises:
        InputError: a folder is no finished run, or the two are not of the same questions.
    """
    reports = [read_report(run) for run in (run_a, run_b)]
    for key, what in (("task", "tasks"), ("questions", "data")):
        if reports[0][key] != reports[1][key]:
            raise InputError(f"{run_a} and {run_b} are of different {what}: {reports[0][key]} and {reports[1][key]}")
    answers_a, answers_b = (_correct(run, report) for run, report in zip((run_a, run_b), reports, strict=True))
    if alone := answers_a.keys() ^ answers_b.keys():
        raise InputError(
            f"{run_a} and {run_b} are not of the same questions: {len(alone)} in one only, such as {min(alone)}; "
            f"run both with the same --limit"
        )
    shaded = any(isinstance(grade, float) for run in (answers_a, answers_b) for _, grade in run.values())
    results = {}
    for category in reports[0]["results"]:
        pairs = [
            (grade, answers_b[identity][1])
            for identity, (groups, grade) in answers_a.items()
            if category in (*groups, OVERALL)
        ]
        only_a, only_b = sum(a > b for a, b in pairs), sum(a < b for a, b in pairs)
        if shaded:
            difference, interval, p = paired_bootstrap([b - a for a, b in pairs])
        else:
            difference, interval = paired_difference(only_a, only_b, len(pairs))
            p = mcnemar_exact(only_a, only_b)
        results[category] = {
            "count": len(pairs),
            "correct_a": sum(a for a, _ in pairs),
            "correct_b": sum(b for _, b in pairs),
            "difference": difference,
            "interval": list(interval),
            "only_a": only_a,
            "only_b": only_b,
            "p": p,
        }
    return {
        "task": reports[0]["task"],
        "a": {"run": str(run_a), "model": reports[0]["model"], "protocol": reports[0]["protocol"]},
        "b": {"run": str(run_b), "model": reports[1]["model"], "protocol": reports[1]["protocol"]},
        "results": results,
        "test": PAIRED_BOOTSTRAP if shaded else MCNEMAR,
        "differing": {
            "only_a": [i for i, (_, grade) in answers_a.items() if grade > answers_b[i][1]],
            "only_b": [i for i, (_, grade) in answers_a.items() if grade < answers_b[i][1]],
        },
    }


def format_comparison(comparison: dict[str, Any]) -> str:
    """The comparison as its user sees it."""
    rows = [("", "questions", "A", "B", "B - A", "95 % interval", "only A", "only B", "p")]
    for category, row in comparison["results"].items():
        low, high = row["interval"]
        rows.append(
            (
                category,
                str(row["count"]),
                f"{row['correct_a'] / row['count']:.1%}",
                f"{row['correct_b'] / row['count']:.1%}",
                f"{100 * row['difference']:+.1f}",
                f"{100 * low:+.1f} to {100 * high:+.1f}",
                str(row["only_a"]),
                str(row["only_b"]),
                f"{row['p']:.2g}",
            )
        )
    lines = [
        *(f"{name.upper()}: {comparison[name]['model']} ({comparison[name]['protocol']})" for name in "ab"),
        "",
        format_table(rows),
        "",
        f"differences in points, paired; p: {comparison['test']}, two-sided",
    ]
    verdict = "right in {} only" if comparison["test"] == MCNEMAR else "better in {}"
    for name in "ab":
        ids = comparison["differing"][f"only_{name}"]
        listed = ", ".join(ids[:_LISTED]) + (", …" if len(ids) > _LISTED else "")
        lines.append(f"{verdict.format(name.upper())} ({len(ids)}): {listed}")
    return "\n".join(lines)


def read_report(run: Path) -> dict[str, Any]:
    """The run's ``report.json``.

    Raises:
        InputError: the folder has none.
    """
    if not run.is_dir():
        raise InputError(f"{run}: no such folder; a run is the --output folder of llava-s2 eval")
    if not (run / REPORT).exists():
        raise InputError(f"{run}: no {REPORT}; start the same llava-s2 eval again to finish the run")
    report = read_value(run / REPORT)
    if missing := {"task", "questions", "question_ids", "model", "protocol", "results"} - report.keys():
        raise InputError(f"{run / REPORT}: lacks {', '.join(sorted(missing))}; not a report of llava-s2 eval")
    return report


def _correct(run: Path, report: dict[str, Any]) -> dict[str, tuple[list[str], float]]:
    """Id -> (categories, grade) of the questions that the report is about; one of several forms counts once."""
    records = {record["question_id"]: record for record in read_predictions(run / PREDICTIONS)}
    answers: dict[str, tuple[list[str], float]] = {}
    for identity in report["question_ids"]:
        record = records.get(identity)
        if record is None or not isinstance(record.get("correct"), bool | float):
            raise InputError(f"{run / PREDICTIONS}: no graded prediction of {identity}; start llava-s2 eval again")
        question = str(record.get("group", identity))
        categories, grade = answers.get(question, ([str(record.get("category")), *record.get("also", ())], True))
        answers[question] = categories, record["correct"] if grade is True else min(grade, record["correct"])
    return answers
