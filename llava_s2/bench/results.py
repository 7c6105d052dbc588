"""Results that a cut-off benchmark keeps, and how they are drawn."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class Results:
    """Lines of JSON in a file, each with a key; one that is there is not made again."""

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file = file
        self._found: dict[str, dict[str, Any]] = {}
        if file.exists():
            for line in file.read_text().splitlines():
                try:
                    result = json.loads(line)
                except ValueError:  # the last one, cut off
                    continue
                self._found[json.dumps(result["key"], sort_keys=True)] = result

    def get(self, key: dict[str, Any]) -> dict[str, Any] | None:
        return self._found.get(json.dumps(key, sort_keys=True))

    def add(self, key: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
        """Writes a result, whole or not at all, and returns it."""
        self._found[json.dumps(key, sort_keys=True)] = kept = {"key": key, **result}
        temporary = self._file.with_name(self._file.name + ".part")
        temporary.write_text("".join(json.dumps(each) + "\n" for each in self._found.values()))
        temporary.replace(self._file)
        return kept


@dataclass(frozen=True)
class Curve:
    """Points of one line of a plot: x, y, and a word at each."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    words: Sequence[str] = ()
    line: bool = True


def draw(path: Path, curves: Sequence[Curve], x: str, y: str, *, log_y: bool = False) -> None:
    """Draws curves over a logarithmic axis of cost. Does nothing where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator, NullFormatter
    except ImportError:
        return
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    for number, curve in enumerate(curves):
        style = "o-" if curve.line else "o"
        color = axes.plot(curve.x, curve.y, style, label=curve.name, markersize=5, linewidth=1.4)[0].get_color()
        for at_x, at_y, word in zip(curve.x, curve.y, curve.words, strict=False):
            # Curves that touch write on different sides, in their own colors; single points slantwise.
            place, side = ((5, -10), "left") if number % 2 else ((-4, 6), "right") if curve.line else ((2, 3), "left")
            axes.annotate(
                word, (at_x, at_y), xytext=place, textcoords="offset points", fontsize=7, color=color, ha=side,
                rotation=0 if curve.line else 35, rotation_mode="anchor",
            )  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(0.15)
    if log_y:
        axes.set_yscale("log")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8, loc="best" if curves[0].line else "lower left")
    figure.savefig(path, dpi=110)
