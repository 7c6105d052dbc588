"""What `llava-s2 study all --small` found, in one table and one figure: means and intervals over seeds."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava_s2.files import atomic_write
from llava_s2.studies.study_report import mean_and_deviation, short

Row = dict[str, Any]
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
    _draw(found, output / "summary.png")
    return table


def interval(differences: Sequence[float]) -> str:
    """Mean and 95 % confidence interval of the mean by Student's t; nothing of less than two values."""
    from scipy.stats import t

    if len(differences) < 2:
        return ""
    mean, deviation = mean_and_deviation(differences)
    half = float(t.ppf(0.975, len(differences) - 1)) * deviation / math.sqrt(len(differences))
    return f"{mean:+.3g} ({mean - half:+.2g} to {mean + half:+.2g})"


def _draw(found: dict[str, tuple[str, str, list[Row]]], file: Path) -> None:
    """A panel a study: its score over the settings, every seed a thin line and their mean a thick one."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    columns = min(4, max(len(found), 1))
    lines = max(-(-len(found) // columns), 1)
    figure, axes = plt.subplots(lines, columns, figsize=(3 * columns, 2.7 * lines), layout="constrained", squeeze=False)
    for place in axes.flat[len(found) :]:
        place.axis("off")
    for place, (study, (score, group, rows)) in zip(axes.flat, found.items(), strict=False):
        ticks = list(dict.fromkeys(row["scales"] for row in rows))
        for number, model in enumerate(dict.fromkeys(row[group] for row in rows)):
            seeds: dict[Any, dict[int, float]] = {}
            for row in rows:
                if row[group] == model:
                    seeds.setdefault(row["seed"], {})[ticks.index(row["scales"])] = row[score]
            for line in seeds.values():
                place.plot(list(line), list(line.values()), color=f"C{number}", alpha=0.35, linewidth=1)
            at = sorted({tick for line in seeds.values() for tick in line})
            means = [mean_and_deviation([line[tick] for line in seeds.values() if tick in line])[0] for tick in at]
            place.plot(at, means, color=f"C{number}", marker="o", label=short(model))
        place.set_title(study, fontsize="medium")
        place.set_ylabel(score, fontsize="small")
        place.set_xticks(range(len(ticks)), [tick.replace(", ", "\n+ ") for tick in ticks], fontsize="x-small")
        place.margins(x=0.25)
        place.legend(fontsize="x-small")
        place.grid(alpha=0.3)
    with atomic_write(file) as partial:
        figure.savefig(partial, dpi=100)
    plt.close(figure)
