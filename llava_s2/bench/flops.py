"""``llava-s2 bench flops``: the cost of towers, and the paper's cost tables beside what is counted here."""

from dataclasses import dataclass

from tqdm import tqdm

from llava_s2.bench.cost import Cost, cost
from llava_s2.bench.paper import ROWS, Row
from llava_s2.errors import InputError
from llava_s2.model.embedded import resolve_vision_tower
from llava_s2.towers.load_tower import load_vision_config

_CONSISTENT = 0.03


def count(tower: str, scales: list[int], feature_layer: int = -1) -> Cost:
    """The cost of a tower by its name. Raises InputError for one that is not known or cannot be run so."""
    try:
        return cost(load_vision_config(resolve_vision_tower(tower)), scales, feature_layer)
    except ValueError as error:
        raise error if isinstance(error, InputError) else InputError(f"{tower}: {error}") from error


def tower_table(costs: dict[str, Cost]) -> str:
    """Costs by a name for each."""
    width = max(map(len, costs))
    lines = [f"{'tower':<{width}}  {'parameters':>11} {'GMACs':>9} {'tiles':>6} {'tokens':>7} {'channels':>9}"]
    lines += [
        f"{name:<{width}}  {c.parameters / 1e6:>10.1f}M {c.macs / 1e9:>9.1f} {c.tiles:>6} {c.tokens:>7} {c.width:>9}"
        for name, c in costs.items()
    ]
    return "\n".join(lines)


@dataclass(frozen=True)
class Reproduced:
    """A row of the paper and what is counted for it.

    Attributes:
        giga: 10^9 multiply-accumulates, counted as the row was: its scales, attention's products that it has.
        full: of the scales that the row names, with both products. millions: parameters of the backbone.
    """

    row: Row
    giga: float
    full: float
    millions: float

    @property
    def difference(self) -> float:
        """Of the count from the paper's number, relative to that."""
        return self.giga / self.row.giga - 1

    @property
    def agrees(self) -> bool:
        return abs(self.difference) <= _CONSISTENT


def reproduce(rows: tuple[Row, ...] = ROWS) -> list[Reproduced]:
    """Counts every row of the paper's cost tables; takes about a minute."""
    counted = []
    for row in tqdm(rows, desc="rows of the paper", unit="row", leave=False):
        as_counted = count(row.backbone, list(row.counted or row.scales))
        full = count(row.backbone, list(row.scales))
        giga = (as_counted.linear + as_counted.attention * row.products / 2) / 1e9
        counted.append(Reproduced(row, giga, full.macs / 1e9, as_counted.parameters / 1e6))
    return counted


def paper_table(rows: list[Reproduced]) -> str:
    """The tables' columns beside the counts, and under them the rows that are inconsistent."""
    width = max(len(item.row.name) for item in rows)
    lines = [
        f"{'table':<5}  {'model, scales':<{width}}  {'paper':>7} {'counted':>8} {'':>6}  {'all':>7}  "
        f"{'#Params':>7} {'counted':>8}"
    ]
    for item in rows:
        row = item.row
        params = f"{row.millions}M" if row.millions else "-"
        lines.append(
            f"{row.table:<5}  {row.name:<{width}}  {row.giga:>6.5g}G {item.giga:>7.1f}G {item.difference:>+6.1%}  "
            f"{item.full:>6.1f}G  {params:>7} {item.millions:>7.0f}M{' *' if row.note else ''}"
        )
    agree = sum(item.agrees for item in rows)
    lines += [
        "",
        f"{agree} of {len(rows)} rows agree within {_CONSISTENT:.0%}.",
        "counted: with as many of attention's two products as the paper's counter saw in that model; all: with both,",
        "at the scales that the row names. G: 10^9 multiply-accumulates.",
        "* inconsistent:",
    ]
    notes: dict[str, list[Row]] = {}
    for item in rows:
        if item.row.note:
            notes.setdefault(item.row.note, []).append(item.row)
    for note, noted in notes.items():
        named = "; ".join(f"table {row.table}, {row.name}" for row in noted)
        lines.append(f"  {named}: {note}")
    return "\n".join(lines)
