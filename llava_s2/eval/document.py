"""Any number of runs side by side: ``report.md`` with tables that can be pasted, and a plot of them."""

import os
import re
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llava_s2.errors import InputError
from llava_s2.eval.compare import compare, read_report
from llava_s2.eval.report import OVERALL
from llava_s2.eval.report import notes as notes_of
from llava_s2.files import atomic_write

DOCUMENT = "report.md"
CHART = "report.png"
_SETTINGS = {
    "model": "model",
    "base": "base",
    "vision_tower": "vision tower",
    "revisions": "hub revisions",
    "model_checksum": "model checksum",
    "protocol": "protocol",
    "rule": "rule that reads options",
    "variant": "split or setting",
    "seed": "seed",
    "max_new_tokens": "new tokens at most",
    "template": "template",
    "image_mode": "image mode",
    "exif_orientation": "EXIF orientation",
    "dtype": "dtype",
    "quantization": "quantization",
    "batch_size": "batch size",
    "processes": "processes",
    "device": "device",
    "seconds_per_image": "seconds a question and process",
    "questions": "checksum of questions and images",
    "prompts": "checksum of prompts",
    "references": "checksum of reference answers",
    "data": "data",
    "kit": "measured with",
    "versions": "versions",
}
"""Key of a report -> what its row in the table of settings is called."""


def write_document(runs: Sequence[Path], output: Path) -> list[Path]:
    """Writes ``report.md`` and, where matplotlib is installed, ``report.png`` about the runs into ``output``.

    Args:
        runs: output folders of finished ``llava-s2 eval``, of any tasks; within a task the first is what the others
            are compared with.
        output: a folder; made if missing.

    Returns:
        The files written.

    Raises:
        InputError: a folder is no finished run, or ``output`` cannot be written.
    """
    reports = [(run, read_report(run)) for run in runs]
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{output}: cannot be made a folder ({error.strerror}); choose another --output") from None
    names = _names(runs)
    tasks: dict[str, list[tuple[str, Path, dict[str, Any]]]] = {}
    for name, (run, report) in zip(names, reports, strict=True):
        # Variants of a task are other questions, prompts or options: no table has them side by side.
        heading = ", ".join(filter(None, (report["task"], report.get("variant"))))
        tasks.setdefault(heading, []).append((name, run, report))
    written = []
    if find_spec("matplotlib") is not None:
        with atomic_write(output / CHART) as partial:
            _draw(tasks, partial)
        written.append(output / CHART)
    text = _document(tasks, plot=bool(written))
    with atomic_write(output / DOCUMENT) as partial:
        partial.write_text(text, encoding="utf-8")
    return [output / DOCUMENT, *written]


def _document(tasks: dict[str, list[tuple[str, Path, dict[str, Any]]]], plot: bool) -> str:
    blocks = ["# Evaluation", "Accuracy in percent with its 95 % interval."]
    if plot:
        blocks.append(f"![accuracy of each run and category]({CHART})")
    for task, listed in tasks.items():
        blocks.append(f"## {task}")
        scored = [(name, run, report) for name, run, report in listed if report["results"]]
        if scored:
            blocks.append(_scores([(name, report) for name, _, report in scored]))
            blocks += _own_figures([(name, report) for name, _, report in scored])
        unscored = [(name, report) for name, _, report in listed if not report["results"]]
        blocks += [
            f"{name}: {report.get('unscored', 'no score, the data has no answers')}." for name, report in unscored
        ]
        blocks += _notes([(name, report) for name, _, report in listed])
        blocks += _comparisons(scored)
        blocks.append(_settings([(name, report) for name, _, report in listed]))
    return "\n\n".join(blocks) + "\n"


def _scores(runs: Sequence[tuple[str, dict[str, Any]]]) -> str:
    categories = dict.fromkeys(category for _, report in runs for category in report["results"])
    rows = [("category", "questions", *(name for name, _ in runs))]
    for category in (*(name for name in categories if name != OVERALL), OVERALL):
        found = [report["results"].get(category) for _, report in runs]
        counts = dict.fromkeys(str(row["count"]) for row in found if row)
        label = f"**{category}**" if category == OVERALL else category
        rows.append((label, " / ".join(counts), *(_score(row) for row in found)))
    return _table(rows)


def _own_figures(runs: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    """The figures that the benchmark itself reports, where these are no accuracies."""
    figures = dict.fromkeys(figure for _, report in runs for figure in report.get("metrics", ()))
    if not figures:
        return []
    rows = [("figure", *(name for name, _ in runs))]
    for figure in figures:
        found = [report.get("metrics", {}).get(figure) for _, report in runs]
        rows.append((figure, *("" if value is None else f"{value:.4g}" for value in found)))
    return [_table(rows)]


def _score(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    low, high = row["interval"]
    return f"{100 * row['accuracy']:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def _notes(runs: Iterable[tuple[str, dict[str, Any]]]) -> list[str]:
    """What a reader of the scores must know of single runs."""
    return [f"{name}: {note}." for name, report in runs for note in notes_of(report)]


def _comparisons(runs: Sequence[tuple[str, Path, dict[str, Any]]]) -> list[str]:
    """Each run against the first, paired, where they are of the same questions."""
    rows = [("B", "A", "B - A, points", "95 % interval", "better in A", "better in B", "p")]
    apart: list[str] = []
    tests: dict[str, None] = {}
    for name, run, _ in runs[1:]:
        try:
            found = compare(runs[0][1], run)
        except InputError as error:
            apart.append(f"{name} is not compared: {error}.")
            continue
        overall = found["results"][OVERALL]
        low, high = overall["interval"]
        tests[found["test"]] = None
        rows.append(
            (
                name,
                runs[0][0],
                f"{100 * overall['difference']:+.1f}",
                f"{100 * low:+.1f} to {100 * high:+.1f}",
                str(overall["only_a"]),
                str(overall["only_b"]),
                f"{overall['p']:.2g}",
            )
        )
    if len(rows) == 1:
        return apart
    return [f"Paired, over all questions; p: {', '.join(tests)}, two-sided.", _table(rows), *apart]


def _settings(runs: Sequence[tuple[str, dict[str, Any]]]) -> str:
    rows = [("setting", *(name for name, _ in runs))]
    for key, label in _SETTINGS.items():
        values = [_setting(report.get(key)) for _, report in runs]
        if any(values):
            rows.append((label, *values))
    return _table(rows)


def _setting(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {part}" for name, part in value.items())
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def _names(runs: Sequence[Path]) -> list[str]:
    """Of each run the end of its path that tells it from the others."""
    parts = [Path(os.path.normpath(run.absolute())).parts for run in runs]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise InputError(f"{runs[0]}: the same run twice")


def _draw(tasks: dict[str, list[tuple[str, Path, dict[str, Any]]]], file: Path) -> None:
    """A panel a task: bars with intervals, a colour a run."""
    from matplotlib.figure import Figure

    panels = []
    for task, listed in tasks.items():
        runs = [(name, report["results"]) for name, _, report in listed if report["results"]]
        met = dict.fromkeys(category for _, results in runs for category in results)
        panels.append((task, runs, [OVERALL, *reversed([c for c in met if c != OVERALL])] if runs else []))
    heights = [max(1.5, 0.5 + 0.22 * len(categories) * (len(runs) + 1)) for _, runs, categories in panels]
    figure = Figure(figsize=(8, sum(heights) + 0.6 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), squeeze=False, height_ratios=heights)[:, 0]
    for axis, (task, runs, categories) in zip(axes, panels, strict=True):
        axis.set(title=task, xlim=(0, 100), xlabel="accuracy, % (bars: 95 % interval)")
        for place, (name, results) in enumerate(runs):
            rows = [(position, results[c]) for position, c in enumerate(categories) if c in results]
            low, centre, high = ([100 * value for value in values] for values in zip(*map(_bounds, rows), strict=True))
            axis.barh(
                [position - (place - (len(runs) - 1) / 2) * 0.8 / len(runs) for position, _ in rows],
                centre,
                height=0.8 / len(runs),
                xerr=[
                    [max(0, c - end) for c, end in zip(centre, low, strict=True)],
                    [max(0, end - c) for c, end in zip(centre, high, strict=True)],
                ],
                error_kw={"elinewidth": 1, "capsize": 2},
                label=re.sub("^_", " _", name),  # matplotlib leaves labels with an underscore in front out
            )
        axis.set_yticks(range(len(categories)), categories)
        axis.grid(axis="x", alpha=0.3)
        if len(runs) > 1:
            axis.legend(fontsize="small")
    figure.savefig(file, format="png", dpi=110)


def _bounds(row: tuple[int, dict[str, Any]]) -> tuple[float, float, float]:
    low, high = row[1]["interval"]
    return low, row[1]["accuracy"], high
