"""Table 11 of the S2 paper with your models' columns beside its own.

    python -m llava_s2.eval.table11 FOLDER … [vqav2=80.0 vizwiz=50.1 …]

Reads every report.json below the folders, as ``llava-s2 eval`` and the scripts here write them; a column each model.
TASK=PERCENT enters what a benchmark's server said of a submission, for the last model. The last line is a JSON object.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llava_s2.errors import InputError
from llava_s2.eval.report import format_table
from llava_s2.eval.run_folder import REPORT
from llava_s2.eval.tables import read_value

PAPER = {  # Shi et al. 2024, table 11
    "GPT-4V": (51.3, 60.5, 77.2, 78.0, None, 56.8, 49.9, 75.8, 71.6, 67.6),
    "Gemini Pro": (40.9, 59.2, 71.2, 74.6, None, 47.9, 45.2, 73.6, 70.7, 64.3),
    "LLaVA-1.5-7B": (43.5, 56.6, 78.5, 58.2, 50.0, 36.2, 25.2, 64.3, 65.7, 30.5),
    "7B + S2": (51.3, 61.8, 80.0, 61.0, 50.1, 37.7, 25.3, 66.2, 67.9, 32.4),
    "LLaVA-1.5-13B": (41.7, 55.3, 80.0, 61.3, 53.6, 36.4, 27.6, 67.8, 68.2, 35.4),
    "13B + S2": (50.4, 63.2, 80.9, 63.1, 56.0, 37.4, 27.8, 67.9, 68.9, 36.4),
}


class Row(NamedTuple):
    """One benchmark of the table: where its number stands in a report, and runs that differ from the paper's.

    ``like`` is what a run as the paper's has in its report; ``note`` is said of other runs of the task.
    """

    title: str
    task: str
    category: str
    like: dict[str, str]
    note: str


_PAPERS_JUDGE = "gpt-4-0"
_VSTAR = {"scoring": "likelihood", "variant": "sentences"}
_NOT_VSTAR = "by letter, or by likelihood of words; the paper's by likelihood of sentences"

ROWS = (
    Row("V* attribute", "vstar", "direct_attributes", _VSTAR, _NOT_VSTAR),
    Row("V* spatial", "vstar", "relative_position", _VSTAR, _NOT_VSTAR),
    Row("VQAv2", "vqav2", "overall", {"variant": "test-dev"}, "on val; the paper's is test-dev, by the server"),
    Row("TextVQA", "textvqa", "overall", {"variant": "ocr"}, "without OCR tokens; LLaVA-1.5's has them"),
    Row("VizWiz", "vizwiz", "overall", {"variant": "test"}, "on val; the paper's is test-dev, by the server"),
    Row(
        "MMMU",
        "mmmu",
        "overall",
        {"variant": "vlmevalkit"},
        "MMMU's own prompt and parsing; the paper's by VLMEvalKit (--variant vlmevalkit)",
    ),
    Row(
        "MathVista",
        "mathvista",
        "overall",
        {"judge": _PAPERS_JUDGE},
        "answers not extracted by GPT-4; the paper's are",
    ),
    Row("MMBench", "mmbench", "overall", {"variant": "dev-en"}, "not on dev-en"),
    Row("SEED-Bench", "seedbench", "image", {"scoring": "generate"}, "by likelihood; the paper's by letter"),
    Row("MM-Vet", "mmvet", "overall", {"judge": _PAPERS_JUDGE}, "by another judge than the paper's, gpt-4-0613"),
)
"""The paper's SEED-Bench numbers are those of its images: LLaVA-1.5-7B has 58.6 over all and 66.1 on images."""


def read_reports(folders: list[Path]) -> dict[str, list[dict[str, Any]]]:
    """Model -> its reports, in the order of the folders; a report with a judge says so in ``judge``."""
    models: dict[str, list[dict[str, Any]]] = {}
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; name the --output folders of llava-s2 eval, or one above them")
        for path in sorted(folder.rglob(REPORT)):
            report = read_value(path)
            missing = {"task", "model", "results", "scoring", "question_ids", "questions_in_data"} - report.keys()
            if missing:
                raise InputError(f"{path}: is no report of llava-s2 eval; it has no {', '.join(sorted(missing))}")
            models.setdefault(report["model"], []).append(report)
    if not models:
        raise InputError(f"{', '.join(map(str, folders))}: no {REPORT}; run the scripts of scripts/eval first")
    return models


def find(row: Row, reports: list[dict[str, Any]]) -> tuple[dict[str, Any] | None, str]:
    """The row's numbers of one model, and what to note of them; a run like the paper's goes before others."""
    found = [r for r in reports if r["task"] == row.task and row.category in r["results"]]
    found = [r for r in found if "without the image" not in r["protocol"]]
    if not found:
        return None, ""
    report = max(found, key=lambda r: (_alike(row, r), len(r["question_ids"])))
    notes = [] if _alike(row, report) else [row.note]
    if len(report["question_ids"]) < report["questions_in_data"]:
        notes.append(f"{len(report['question_ids'])} of {report['questions_in_data']} questions")
    return report["results"][row.category], "; ".join(filter(None, notes))


def _alike(row: Row, report: dict[str, Any]) -> bool:
    judged = str((report.get("judge") or {}).get("name", ""))
    return all(judged.startswith(v) if k == "judge" else report.get(k) == v for k, v in row.like.items())


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table. Returns the exit status: 0, or 2 for input that is wrong."""
    parser = argparse.ArgumentParser(
        prog="table11", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="folders with runs; TASK=PERCENT of a server")
    args = parser.parse_args(argv)
    try:
        servers = dict(_server(text) for text in args.folders if "=" in text)
        models = read_reports([Path(text) for text in args.folders if "=" not in text])
    except InputError as error:
        print(f"table11: error: {error}", file=sys.stderr)
        return 2
    text, values = format_table11(models, servers)
    print(text)
    print(json.dumps(values))
    return 0


def format_table11(
    models: dict[str, list[dict[str, Any]]], servers: Mapping[str, float] | None = None
) -> tuple[str, list[dict[str, Any]]]:
    """The table with its notes, and its values: of each model and row the percentage and what differs from the paper.

    Args:
        models: of ``read_reports``.
        servers: task -> percentage that its server said of the last model's submission.
    """
    servers = servers or {}
    names = list(models)
    labels = [f"yours ({number})" if len(names) > 1 else "yours" for number in range(1, len(names) + 1)]
    lines = [("", *PAPER, *labels, "95 % interval")]
    notes, values = [], []
    for place, row in enumerate(ROWS):
        cells = [f"{v:.1f}" if (v := numbers[place]) is not None else "-" for numbers in PAPER.values()]
        interval = ""
        for name, label in zip(names, labels, strict=True):
            result, note = find(row, models[name])
            server = servers.get(row.task) if name == names[-1] else None
            value = server if server is not None else 100 * result["accuracy"] if result else None
            if server is not None:
                note, interval = "as its server said", ""
            elif result:
                interval = "{:.1f} to {:.1f}".format(*(100 * end for end in result["interval"]))
            values.append({"model": name, "row": row.title, "percent": value, "note": note})
            mark = ""
            if note and value is not None:
                notes.append(f"{label}, {row.title}: {note}")
                mark = "*"
            cells.append("-" if value is None else f"{value:.1f}{mark}")
        lines.append((row.title, *cells, interval))
    about = "per cent; the paper's SEED-Bench is of images alone"
    about += "; the interval is the last column's" if len(names) > 1 else ""
    listed = [f"{label}: {name}" for name, label in zip(names, labels, strict=True)]
    return "\n".join((format_table(lines), "", *listed, about, *(f"* {note}" for note in notes))), values


def _server(text: str) -> tuple[str, float]:
    task, _, value = text.partition("=")
    try:
        if task in {row.task for row in ROWS}:
            return task, float(value)
    except ValueError:
        pass
    raise InputError(f"{text}: must be TASK=PERCENT with a task of the table, as vqav2=80.0")


if __name__ == "__main__":
    sys.exit(main())
