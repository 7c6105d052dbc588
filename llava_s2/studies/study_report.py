"""A study's results: rows that survive a stop, ``report.json``, ``report.md`` and a plot."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llava_s2 import __version__
from llava_s2.errors import InputError
from llava_s2.files import atomic_write

Row = dict[str, Any]


class StudyReport:
    """Rows of a study, each written as soon as it is there.

    A run that was stopped and is started again with the same setting finds its rows; another setting needs another
    folder.

    Args:
        output: folder. study: name. setting: everything that the numbers depend on beside a row's own key.

    Raises:
        InputError: the folder holds results of another study or setting.
    """

    def __init__(self, output: Path, study: str, setting: dict[str, Any]) -> None:
        self.output, self.study = output, study
        self.setting = json.loads(json.dumps(setting, default=str))
        self.rows: list[Row] = []
        self.notes: list[str] = []
        self.finished: dict[str, str] = {}
        file = output / "report.json"
        if file.exists():
            found = json.loads(file.read_text(encoding="utf-8"))
            if (found.get("study"), found.get("setting")) != (study, self.setting):
                old, new = {"study": found.get("study"), **found.get("setting", {})}, {"study": study, **self.setting}
                other = [key for key in new if old.get(key) != new[key]] or [key for key in old if key not in new]
                raise InputError(
                    f"{file}: holds results of another setting ({other[0]} was {old.get(other[0])}, now "
                    f"{new.get(other[0])}); name another --output"
                )
            self.rows = found["rows"]

    def row(self, key: Row, compute: Callable[[], Row], weights: str | None = None) -> Row:
        """The row that begins with `key`: from the folder, or computed and written.

        Args:
            weights: a key of the weights of the tower that the row is about.

        Raises:
            InputError: the folder's row is of other weights.
        """
        key = json.loads(json.dumps(key))
        for row in self.rows:
            if all(row.get(name) == value for name, value in key.items()):
                if row.get("weights", weights) != weights:
                    raise InputError(
                        f"{self.output / 'report.json'}: holds results of other weights of {row.get('tower')}; name "
                        "another --output"
                    )
                return row
        row = {**key, **compute(), **({"weights": weights} if weights else {})}
        self.rows.append(row)
        self.write()
        return row

    def write(self) -> None:
        document = {
            "study": self.study,
            "llava_s2": __version__,
            "setting": self.setting,
            "notes": self.notes,
            "rows": self.rows,
            **self.finished,
        }
        with atomic_write(self.output / "report.json") as partial:
            partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        with atomic_write(self.output / "report.md") as partial:
            partial.write_text(self.markdown(), encoding="utf-8")

    def note(self, line: str) -> None:
        """Adds a line to the report and prints it."""
        if line not in self.notes:
            self.notes.append(line)
            print(line)

    def markdown(self) -> str:
        columns = list(dict.fromkeys(name for row in self.rows for name, value in row.items() if _is_cell(name, value)))
        lines = [f"# llava-s2 study {self.study}", ""]
        lines += [f"- {name}: {value}" for name, value in self.setting.items()]
        lines += ["", "| " + " | ".join(columns) + " |", "| " + " | ".join("---" for _ in columns) + " |"]
        lines += ["| " + " | ".join(_cell(row.get(name)) for name in columns) + " |" for row in self.rows]
        return "\n".join([*lines, *(f"\n{line}" for line in self.notes)]) + "\n"

    def finish(self, score: str, group: str) -> None:
        """Writes and prints the report, and draws `score` over the settings, with lines for each value of `group`."""
        self.finished = {"score": score, "group": group}
        self.write()
        draw({self.study: (score, group, self.rows)}, self.output / f"{self.study}.png")
        print(self.markdown())


def draw(studies: Mapping[str, tuple[str, str, Sequence[Row]]], file: Path) -> None:
    """A panel a study: its score over the settings, every seed a thin line and their mean a thick one.

    Args:
        studies: title -> score, which is the rows' entry that is drawn, group, whose every value has lines of its own,
            and rows. A row without a `seed` is of one seed with the others.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    columns = min(4, max(len(studies), 1))
    lines = max(-(-len(studies) // columns), 1)
    size = (3 * columns, 2.7 * lines) if len(studies) > 1 else (5, 3.4)
    figure, axes = plt.subplots(lines, columns, figsize=size, layout="constrained", squeeze=False)
    for place in axes.flat[len(studies) :]:
        place.axis("off")
    for place, (title, (score, group, rows)) in zip(axes.flat, studies.items(), strict=False):
        rows = [row for row in rows if row.get(score) is not None]
        ticks = list(dict.fromkeys(row["scales"] for row in rows))
        for number, name in enumerate(dict.fromkeys(row[group] for row in rows)):
            seeds: dict[Any, dict[int, float]] = {}
            for row in rows:
                if row[group] == name:
                    seeds.setdefault(row.get("seed"), {})[ticks.index(row["scales"])] = row[score]
            for values in seeds.values():
                place.plot(list(values), list(values.values()), color=f"C{number}", alpha=0.35, linewidth=1, marker=".")
            at = sorted({tick for values in seeds.values() for tick in values})
            means = [mean_and_deviation([values[t] for values in seeds.values() if t in values])[0] for t in at]
            place.plot(at, means, color=f"C{number}", marker="o", label=short(name))
        place.set_title(title, fontsize="medium")
        place.set_ylabel(score, fontsize="small")
        place.set_xticks(range(len(ticks)), [tick.replace(", ", "\n+ ") for tick in ticks], fontsize="x-small")
        place.margins(x=0.25)
        place.legend(fontsize="x-small")
        place.grid(alpha=0.3)
    with atomic_write(file) as partial:
        figure.savefig(partial, dpi=120)
    plt.close(figure)


def short(name: Any) -> str:
    """A tower's name without the folders of its files."""
    return Path(str(name)).name.removesuffix(".safetensors") if "/" in str(name) else str(name)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; the deviation of one value is 0."""
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / max(len(values) - 1, 1))


def wilson_interval(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % Wilson score interval of a rate."""
    if trials == 0:
        return 0.0, 1.0
    rate, square = successes / trials, z * z / trials
    centre = (rate + square / 2) / (1 + square)
    half = z * math.sqrt(rate * (1 - rate) / trials + square / trials / 4) / (1 + square)
    return max(centre - half, 0.0), min(centre + half, 1.0)


def _is_cell(name: str, value: Any) -> bool:
    return name != "weights" and (value is None or isinstance(value, (str, int, float)))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return short(value) if isinstance(value, str) else str(value)
