"""Two runs on the same questions, question by question."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava_s2.errors import InputError
from llava_s2.eval.other_kits import OtherAnswer, read_log
from llava_s2.eval.report import OVERALL, format_table
from llava_s2.eval.run_folder import PREDICTIONS, REPORT, read_predictions
from llava_s2.eval.statistics import mcnemar_exact, paired_bootstrap, paired_difference
from llava_s2.eval.tables import read_value

MCNEMAR = "exact McNemar test"
PAIRED_BOOTSTRAP = "paired bootstrap"
_PROTOCOL = (
    "protocol",
    "scoring",
    "variant",
    "rule",
    "seed",
    "prompts",
    "max_new_tokens",
    "template",
    "image_mode",
    "exif_orientation",
    "dtype",
    "quantization",
    "kit",
    "versions",
)
"""Settings of a report, beside the model, that an answer depends on."""
_LISTED = 10  # ids on a terminal; the JSON has them all


def compare(run_a: Path, run_b: Path) -> dict[str, Any]:
    """Compares two finished runs (output folders of ``llava-s2 eval``), or one with another kit's log of its questions.

    Returns:
        ``a`` and ``b`` (folder, model, protocol); ``differences``, settings in which the runs differ, each with both
        values; ``asked_otherwise``, ids of questions with another prompt; ``results`` of each category and of all:
        ``count``, ``correct_a``, ``correct_b``, ``difference`` (accuracy of B minus A), ``interval`` (95 %, paired),
        ``only_a``, ``only_b`` (questions that the run got right alone, or better), ``p`` (two-sided); ``test``,
        McNemar's for right and wrong answers and a paired bootstrap for partial credit; ``differing``, the ids of
        ``only_*``.

    Raises:
        InputError: a folder is no finished run, or the two are not of the same questions, images, references or, where
            both are by likelihood, options.
    """
    asked_otherwise: list[str] = []
    if run_a.is_file() and run_b.is_file():
        raise InputError(f"{run_a} and {run_b} are files; one must be an output folder of llava-s2 eval")
    if run_a.is_file() or run_b.is_file():
        own = run_b if run_a.is_file() else run_a
        report = read_report(own)
        answers = _correct(_records(own, report))
        log = run_a if run_a.is_file() else run_b
        kit, logged = _correct_log(log, own, report)
        other = {**report, "model": log.stem, "protocol": f"{kit}'s own", "kit": kit}
        reports = [other, report] if run_a.is_file() else [report, other]
        answers_a, answers_b = (logged, answers) if run_a.is_file() else (answers, logged)
    else:
        reports = [read_report(run) for run in (run_a, run_b)]
        _refuse_unlike(run_a, run_b, *reports)
        records_a, records_b = (_records(run, report) for run, report in zip((run_a, run_b), reports, strict=True))
        _refuse_other_images(run_a, run_b, records_a, records_b)
        asked_otherwise = _ids_that_differ("prompt", records_a, records_b)
        answers_a, answers_b = _correct(records_a), _correct(records_b)
    if alone := answers_a.keys() ^ answers_b.keys():
        raise InputError(
            f"{run_a} and {run_b} are not of the same questions: {len(alone)} in one only, such as {min(alone)}; "
            f"run both with the same --limit"
        )
    partial = any(isinstance(grade, float) for run in (answers_a, answers_b) for _, grade in run.values())
    results = {}
    for category in reports[0]["results"]:
        pairs = [
            (grade, answers_b[identity][1])
            for identity, (groups, grade) in answers_a.items()
            if category in (*groups, OVERALL)
        ]
        only_a, only_b = sum(a > b for a, b in pairs), sum(a < b for a, b in pairs)
        if partial:
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
        "differences": differences(*reports),
        "asked_otherwise": asked_otherwise,
        "results": results,
        "test": PAIRED_BOOTSTRAP if partial else MCNEMAR,
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
    asked = comparison["asked_otherwise"]
    lines = [
        *(f"{name.upper()}: {comparison[name]['model']} ({comparison[name]['protocol']})" for name in "ab"),
        "",
        format_table(rows),
        "",
        *(f"differ in {name}: {a} and {b}" for name, (a, b) in comparison["differences"].items()),
        *([f"another prompt in {len(asked)} questions, such as {asked[0]}"] if asked else []),
        f"differences in points, paired; p: {comparison['test']}, two-sided",
    ]
    verdict = "right in {} only" if comparison["test"] == MCNEMAR else "better in {}"
    for name in "ab":
        ids = comparison["differing"][f"only_{name}"]
        listed = ", ".join(ids[:_LISTED]) + (", …" if len(ids) > _LISTED else "")
        lines.append(f"{verdict.format(name.upper())} ({len(ids)}): {listed}")
    return "\n".join(lines)


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The settings of the protocol in which two reports differ: name -> both values."""
    return {key: [a.get(key), b.get(key)] for key in _PROTOCOL if a.get(key) != b.get(key)}


def _refuse_unlike(run_a: Path, run_b: Path, a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
    checks = {"task": "tasks", "questions": "questions or images", "references": "reference answers"}
    if a.get("scoring") == b.get("scoring") == "likelihood":
        checks["options"] = "options, whose likelihoods are not comparable"
    for key, what in checks.items():
        if a.get(key) != b.get(key):
            ways = "; ".join(f"{name} {x} and {y}" for name, (x, y) in differences(a, b).items() if name == "variant")
            about = f"{a.get(key)} and {b.get(key)}" + (f"; {ways}" if ways else "")
            raise InputError(f"{run_a} and {run_b} have different {what} ({about}), so they cannot be paired")


def _refuse_other_images(run_a: Path, run_b: Path, a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
    """Raises InputError where an image was another file's content, under the same name, in the two runs."""
    if replaced := _ids_that_differ("image_checksums", a, b):
        raise InputError(
            f"{run_a} and {run_b} saw different images of {len(replaced)} question(s), such as {replaced[0]}; start "
            "the llava-s2 eval of both again, on the same data: it asks about replaced images anew"
        )


def _ids_that_differ(field: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """The questions of both for which both say something else there."""
    return [i for i in a if i in b and field in a[i] and field in b[i] and a[i][field] != b[i][field]]


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
    kinds = {"task": str, "questions": str, "question_ids": list, "model": str, "protocol": str, "results": dict}
    told = report if isinstance(report, dict) else {}
    if missing := sorted(name for name, kind in kinds.items() if not isinstance(told.get(name), kind)):
        raise InputError(f"{run / REPORT}: lacks {', '.join(missing)}; not a report of llava-s2 eval")
    return report


def _records(run: Path, report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Id -> prediction of the questions that the report is about."""
    records = {record["question_id"]: record for record in read_predictions(run / PREDICTIONS)}
    for identity in report["question_ids"]:
        if not isinstance(records.get(identity, {}).get("correct"), bool | float):
            raise InputError(f"{run / PREDICTIONS}: no graded prediction of {identity}; start llava-s2 eval again")
    return {identity: records[identity] for identity in report["question_ids"]}


def _correct(records: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[list[str], float]]:
    """Id -> (categories, grade) of the questions; one of several forms counts once."""
    answers: dict[str, tuple[list[str], float]] = {}
    for identity, record in records.items():
        question = str(record.get("group", identity))
        categories, grade = answers.get(question, ([str(record.get("category")), *record.get("also", ())], True))
        answers[question] = categories, record["correct"] if grade is True else min(grade, record["correct"])
    return answers


def _correct_log(log: Path, run: Path, report: dict[str, Any]) -> tuple[str, dict[str, tuple[list[str], float]]]:
    """The kit, and its grades of the run's questions as ``_correct`` has them; paired one to one or not at all.

    By an id that both have, and that no two answers share; else, of a run of all questions, by the place in the data.
    What was asked must agree as well. Of CircularEval variants a log may have the first alone, graded for all.
    """
    kit, answers = read_log(log, report["task"])
    asked = set(report["question_ids"])
    records = [record for record in read_predictions(run / PREDICTIONS) if record["question_id"] in asked]
    found = _by_place(records, answers) if report.get("questions_in_data") == len(records) == len(answers) else {}
    for field in dict.fromkeys(name for answer in answers for name in answer.ids):
        by_id = {answer.ids[field]: answer for answer in answers if field in answer.ids}
        names = [next((name for name in _names(record) if name in by_id), "") for record in records]
        pairs = {
            record["question_id"]: by_id[name]
            for record, name in zip(records, names, strict=True)
            if name and _same(record, by_id[name])
        }
        unshared = len(by_id) == len(answers) and max(Counter(filter(None, names)).values(), default=0) == 1
        if unshared and len(pairs) > len(found):
            found = pairs
    forms: dict[str, list[str]] = {}
    for record in records:
        forms.setdefault(str(record.get("group", record["question_id"])), []).append(record["question_id"])
    whole = len(found) == len(records)
    if lost := [ids[0] for ids in forms.values() if sum(i in found for i in ids) != (len(ids) if whole else 1)]:
        raise InputError(
            f"{log}: {len(lost)} of the {len(forms)} questions of {run} cannot be told there by id and words, such as "
            f"{lost[0]}; runs on the same files, of all questions, can be paired by their place"
        )
    if ungraded := [identity for identity, answer in found.items() if answer.grade is None]:
        raise InputError(
            f"{log}: holds no grade of {len(ungraded)} questions, as {ungraded[0]}; let {kit} evaluate it first"
        )
    graded: dict[str, tuple[list[str], float]] = {}
    for record in records:
        if (answer := found.get(record["question_id"])) is None:
            continue
        assert answer.grade is not None
        question = str(record.get("group", record["question_id"]))
        categories = [str(record.get("category")), *record.get("also", ())]
        graded[question] = (
            categories,
            min(answer.grade, graded[question][1]) if question in graded else answer.grade,
        )
    return kit, graded


def _by_place(records: Sequence[Mapping[str, Any]], answers: Sequence[OtherAnswer]) -> dict[str, OtherAnswer]:
    """The answers in the data's order, where a log's own words confirm it."""
    places = {answer.place: answer for answer in answers if answer.question}
    pairs = ((record, places.get(number)) for number, record in enumerate(records) if record.get("prompt"))
    return {record["question_id"]: answer for record, answer in pairs if answer and _same(record, answer)}


def _names(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Ids that another kit may have: theirs do not name the set or image that a question is of."""
    identity = str(record["question_id"])
    short = (identity.rpartition("/")[2],) if "/" in identity else ()
    return (*short, *record.get("aliases", ())[::-1], identity)


def _same(record: Mapping[str, Any], answer: OtherAnswer) -> bool:
    """Whether the answer is to the record's question, as far as both say what was asked."""
    own, other = (re.sub(r"<image ?\d*>", " ", t).casefold() for t in (record.get("prompt", ""), answer.question))
    first = next(filter(str.strip, own.splitlines()), "")
    own, other, first = (" ".join(text.split()) for text in (own, other, first))
    return not own or not other or other in own or first in other
