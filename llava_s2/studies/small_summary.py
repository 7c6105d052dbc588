"""What `llava-s2 study all --small` found, in one table and one figure: means and intervals over seeds."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava_s2.files import atomic_write
from llava_s2.studies.study_report import Row, draw, mean_and_deviation, short

_LESS_IS_BETTER = ("RMSE m", "loss of last epoch")


def summarize(output: Path) -> str:
    """Writes ``summary.md`` and ``summary.png`` from the reports under `output`, one folder a study, or one a study and
    seed (``NAME-SEED``). Returns the table.

    Beside each setting's mean stands the 95 % confidence interval of its difference to the first setting of the same
    model, of pairs of equal seeds (Student's t).
    """
    found: dict[str, tuple[str, str, list[Row]]] = {}
    for file in sorted(output.glob("*/report.json")):
        report = json.loads(file.read_text(encoding="utf-8"))
        if "score" in report:
            _, _, rows = found.setdefault(report["study"], (report["score"], report["group"], []))
            rows += [{**row, "seed": (file.parent.name, row.get("seed"))} for row in report["rows"]]
    lines = ["| study | model | scales | score | mean of seeds | change by the scales, 95 % interval |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for study, (score, group, rows) in found.items():
        told = f"{score}, {'less' if score in _LESS_IS_BETTER else 'more'} is better"
        for model in dict.fromkeys(row[group] for row in rows):
            first: dict[Any, float] = {}
            mine = [row for row in rows if row[group] == model]
            for scales in dict.fromkeys(row["scales"] for row in mine):
                values = {row["seed"]: row[score] for row in mine if row["scales"] == scales}
                mean, deviation = mean_and_deviation(list(values.values()))
                change = interval([value - first[seed] for seed, value in values.items() if seed in first])
                first = first or values
                shown = f"{mean:.3g} ± {deviation:.2g} ({len(values)})"
                lines.append(f"| `{study}` | {short(model)} | {scales} | {told} | {shown} | {change} |")
    table = "\n".join(lines) + "\n"
    with atomic_write(output / "summary.md") as partial:
        partial.write_text(table, encoding="utf-8")
    draw(found, output / "summary.png")
    return table


def interval(differences: Sequence[float]) -> str:
    """Mean and 95 % confidence interval of the mean by Student's t; nothing of less than two values."""
    from scipy.stats import t

    if len(differences) < 2:
        return ""
    mean, deviation = mean_and_deviation(differences)
    half = float(t.ppf(0.975, len(differences) - 1)) * deviation / math.sqrt(len(differences))
    return f"{mean:+.3g} ({mean - half:+.2g} to {mean + half:+.2g})"
