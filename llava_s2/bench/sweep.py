"""``llava-s2 bench sweep``: tower configurations over a task; the curve of score against FLOPs (figures 2 and 3)."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm

from llava_s2.bench.colour_probe import extract, probe_score
from llava_s2.bench.cost import cost
from llava_s2.bench.results import Curve, Results, draw
from llava_s2.errors import InputError
from llava_s2.eval.statistics import wilson_interval
from llava_s2.model.assemble import load_image_processor
from llava_s2.model.embedded import resolve_vision_tower
from llava_s2.s2 import S2VisionConfig, S2VisionModel
from llava_s2.s2.backbones import default_feature_layer
from llava_s2.s2.packed_linear import pack_frozen
from llava_s2.synthetic.scenes import SceneConfig
from llava_s2.towers.load_tower import load_vision_backbone, load_vision_config

# As large as the embedded default's largest scale, and full of tinted things.
_SCENES = SceneConfig(side=(448, 448), aspects=(1.0,), things=(8, 14))


@dataclass(frozen=True)
class Setting:
    """A tower configuration: the tower's name, its scales, and the other arguments of ``S2VisionConfig``."""

    tower: str
    scales: tuple[int, ...]
    feature_layer: int | None = None
    split: bool = True
    merge: Literal["concat", "add"] = "concat"

    @property
    def sides(self) -> str:
        return ", ".join(f"{side}²" for side in self.scales)

    @property
    def words(self) -> str:
        kinds = [] if self.split else ["whole images"]
        kinds += [] if self.merge == "concat" else ["added"]
        return ", ".join([self.sides, *kinds])

    def config(self) -> S2VisionConfig:
        """Raises InputError where the tower cannot be run so. Reads no weights."""
        backbone = load_vision_config(resolve_vision_tower(self.tower))
        try:
            layer = default_feature_layer(backbone) if self.feature_layer is None else self.feature_layer
            return S2VisionConfig(
                backbone_config=backbone,
                scales=list(self.scales),
                feature_layer=layer,
                split=self.split,
                merge=self.merge,
            )
        except ValueError as error:
            raise InputError(f"{self.tower} at {self.words}: {error}") from error

    def load(self) -> S2VisionModel:
        config, name = self.config(), resolve_vision_tower(self.tower)
        backbone: Any = load_vision_backbone(name, config.backbone_config, torch.float32)
        options = {"feature_layer": config.feature_layer, "split": self.split, "merge": self.merge}
        tower: Any = S2VisionModel.wrap(backbone, list(self.scales), **options)
        return pack_frozen(tower.eval().requires_grad_(False).to("cuda" if torch.cuda.is_available() else "cpu"))


def sweep(settings: list[Setting], output: Path, images: int = 600, tests: int = 300, seed: int = 0) -> str:
    """Scores every setting and returns the table; what is in ``output`` already is not scored again.

    Args:
        output: folder for ``sweep.jsonl`` and, with matplotlib, ``sweep.png``.
        images: to train the probe on. tests: images to score it on. seed: of the probe.

    Raises:
        InputError: a tower that is not there or cannot be run so; told before any is scored.
    """
    for setting in settings:
        setting.config()
    results = Results(output / "sweep.jsonl")
    scored = []
    for setting in tqdm(settings, desc="settings", unit="setting", leave=False):
        key = {**asdict(setting), "scales": list(setting.scales), "images": images, "tests": tests, "seed": seed}
        scored.append(results.get(key) or results.add(key, _score(setting, images, tests, seed)))
    _draw(output / "sweep.png", settings, scored)
    return _table(settings, scored)


def _score(setting: Setting, images: int, tests: int, seed: int) -> dict[str, Any]:
    config = setting.config()
    counted = cost(
        config.backbone_config, list(setting.scales), config.feature_layer, split=setting.split, merge=setting.merge
    )
    tower = setting.load()
    process = load_image_processor(setting.tower, list(setting.scales))

    def pixels_of(images: list[Any]) -> torch.Tensor:
        return process(images, return_tensors="pt")["pixel_values"]

    train, test = (extract(tower, pixels_of, split, n, _SCENES) for split, n in (("train", images), ("test", tests)))  # type: ignore[arg-type]
    correct, count = probe_score(train, test, seed)
    return {
        "correct": correct,
        "count": count,
        "macs": counted.macs,
        "parameters": counted.parameters,
        "tiles": counted.tiles,
        "tokens": counted.tokens,
    }


def _table(settings: list[Setting], scored: list[dict[str, Any]]) -> str:
    names = [f"{setting.tower} {setting.words}" for setting in settings]
    width = max(map(len, names))
    lines = [f"{'':<{width}}  {'parameters':>10} {'GMACs':>8} {'tokens':>6}  {'score':>6}  95 % interval"]
    for name, result in zip(names, scored, strict=True):
        interval = wilson_interval(result["correct"], result["count"])
        lines.append(
            f"{name:<{width}}  {result['parameters'] / 1e6:>9.1f}M {result['macs'] / 1e9:>8.3g} {result['tokens']:>6}  "
            f"{result['correct'] / result['count']:>6.1%}  {interval.low:.1%} to {interval.high:.1%}"
        )
    total = scored[0]["count"]
    return "\n".join([*lines, f"color of a named thing, {total} held-out things, one probe a setting; chance 12.5%"])


def _draw(path: Path, settings: list[Setting], scored: list[dict[str, Any]]) -> None:
    groups: dict[str, list[tuple[float, float, str]]] = {}
    for setting, result in zip(settings, scored, strict=True):
        kind = "" if setting.split else ", whole images"
        kind += "" if setting.merge == "concat" else ", scales added"
        point = (result["macs"] / 1e9, 100 * result["correct"] / result["count"], setting.sides)
        groups.setdefault(setting.tower + kind, []).append(point)
    curves = []
    for name, points in groups.items():
        costs, scores, words = zip(*sorted(points), strict=True)
        curves.append(Curve(name, costs, scores, words))
    draw(path, curves, "10^9 multiply-accumulates an image", "correct, %")
