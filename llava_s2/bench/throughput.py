"""``llava-s2 bench throughput``: the paper's table 14 on the machine at hand, with random weights."""

import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from llava_s2.bench.cost import at_size
from llava_s2.bench.paper import ROWS, Row
from llava_s2.bench.results import Curve, Results, draw
from llava_s2.s2 import S2VisionConfig, S2VisionModel
from llava_s2.s2.backbones import geometry
from llava_s2.s2.packed_linear import pack_frozen
from llava_s2.towers.load_tower import load_vision_config


def random_tower(name: str, scales: list[int], dtype: torch.dtype, device: str = "cpu") -> S2VisionModel:
    """A whole backbone (all blocks) on image scales, with random weights, built at once in its dtype and place."""
    config = load_vision_config(name)
    if geometry(config).image_size != scales[0]:
        config = at_size(config, scales[0])
    with torch.device("meta"):
        tower: Any = S2VisionModel(S2VisionConfig(backbone_config=config, scales=scales, feature_layer=-1))
    tower = tower.to(dtype).to_empty(device=device).eval().requires_grad_(False)
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.normal_(std=0.02)
    return pack_frozen(tower)


@torch.inference_mode()
def images_per_second(tower: S2VisionModel, batch_size: int, seconds: float) -> float:
    """Images that a tower takes in a second, over at least that many seconds; the first call is left out if short."""
    parameter = next(tower.parameters())
    side = tower.config.image_size
    images = torch.randn(batch_size, 3, side, side, device=parameter.device).to(parameter.dtype)

    def call() -> float:
        start = time.perf_counter()
        tower(images)
        if parameter.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    first = call()
    if first >= seconds:
        return batch_size / first
    spent, calls = 0.0, 0
    while spent < seconds:
        spent += call()
        calls += 1
    return batch_size * calls / spent


def measure_table(
    output: Path, batch_size: int = 1, dtype: str = "float32", seconds: float = 5, largest: float | None = None
) -> str:
    """Measures the rows of table 14 and returns the table; what is in ``output`` already is not measured again.

    Args:
        output: folder for ``throughput.jsonl`` and, with matplotlib, ``throughput.png``.
        batch_size: images a call. dtype: name of the weights' type. seconds: at least this long a row.
        largest: leave out rows of more 10^9 multiply-accumulates.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    machine = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    results = Results(output / "throughput.jsonl")
    rows = [row for row in ROWS if row.images_per_second and (largest is None or row.giga <= largest)]
    measured = []
    for row in tqdm(rows, desc="rows of table 14", unit="row", leave=False):
        key = {
            "row": row.name,
            "backbone": row.backbone,
            "machine": machine,
            "dtype": dtype,
            "batch_size": batch_size,
            "seconds": seconds,
        }
        found = results.get(key)
        if found is None:
            tower = random_tower(row.backbone, list(row.scales), getattr(torch, dtype), device)
            found = results.add(key, {"images_per_second": images_per_second(tower, batch_size, seconds)})
            del tower
        measured.append(float(found["images_per_second"]))
    names = [row.name.partition(" ")[2] for row in rows]  # size and scales
    curves = [
        Curve("paper, table 14", *_ratios(rows, [row.images_per_second or 0 for row in rows]), names, line=False),
        Curve(f"{machine}, {dtype}", *_ratios(rows, measured), line=False),
    ]
    draw(
        output / "throughput.png",
        curves,
        "10^9 multiply-accumulates an image (paper)",
        "images a second, relative to base at 224²",
        log_y=True,
    )
    return _table(rows, measured, f"{machine}, {dtype}, batch {batch_size}, random weights")


def _ratios(rows: list[Row], rates: list[float]) -> tuple[list[float], list[float]]:
    return [row.giga for row in rows], [rate / rates[0] for rate in rates]


def _table(rows: list[Row], measured: list[float], title: str) -> str:
    width = max(len(row.name) for row in rows)
    lines = [title, f"{'':<{width}}  {'#FLOPs':>7}  {'paper/s':>8} {'ratio':>6}  {'here/s':>8} {'ratio':>6}"]
    for row, rate in zip(rows, measured, strict=True):
        paper = row.images_per_second or 0.0
        lines.append(
            f"{row.name:<{width}}  {row.giga:>6.5g}G  {paper:>8.1f} {paper / (rows[0].images_per_second or 1):>6.3f}  "
            f"{rate:>8.3g} {rate / measured[0]:>6.3f}"
        )
    return "\n".join([*lines, "ratio: to base at 224²"])
