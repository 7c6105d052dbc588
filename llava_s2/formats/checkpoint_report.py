"""What ``llava-s2 inspect`` reports of a checkpoint, as a table and as JSON."""

from dataclasses import asdict, dataclass, field
from typing import Any

KINDS = {
    "llm": "a language model, no LLaVA",
    "hf": "LLaVA in transformers' format",
    "adapter": "adapter (PEFT) of a LLaVA",
    "llava_full": "the original LLaVA's format, full",
    "llava_lora": "the original LLaVA's format, LoRA",
    "llava_projector": "the original LLaVA's format, projector only",
}


@dataclass
class Report:
    """What ``inspect`` reports. None means: not known from the files at hand, and ``problems`` says which is missing.

    Attributes:
        kind: see `Checkpoint`. format: the same in words.
        scales: image sides in pixels, one for a single-scale model.
        tokens_per_image: visual tokens an image takes.
        vision_tower: its type or name, and whether its weights are inside.
        projector: the shapes of its weight matrices, (outputs, inputs), first layer first.
        language_model: its type and sizes. base: what an adapter or projector stands on.
        template: name of the conversation template, or "own".
        dtypes: bytes of the weights by dtype. quantization: the method of weights that are stored quantized.
        problems: what is missing or does not fit, each with the way out.
    """

    path: str
    kind: str
    format: str
    scales: list[int] | None = None
    tokens_per_image: int | None = None
    vision_tower: str | None = None
    vision_tower_inside: bool | None = None
    projector: list[tuple[int, ...]] = field(default_factory=list)
    language_model: dict[str, Any] = field(default_factory=dict)
    base: str | None = None
    template: str | None = None
    dtypes: dict[str, int] = field(default_factory=dict)
    quantization: str | None = None
    problems: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        sides = None if self.scales is None else ", ".join(f"{side}²" for side in self.scales)
        inside = {True: " (weights inside)", False: " (weights elsewhere)", None: ""}[self.vision_tower_inside]
        llm = ", ".join(f"{key} {value}" for key, value in self.language_model.items())
        rows = {
            "kind": f"{self.kind}: {self.format}",
            "base": self.base,
            "scales": sides,
            "tokens an image": self.tokens_per_image,
            "vision tower": self.vision_tower and self.vision_tower + inside,
            "projector": " then ".join(f"{columns} -> {rows}" for rows, columns in self.projector),
            "language model": llm,
            "template": self.template,
            "weights": ", ".join(f"{dtype} {_size(count)}" for dtype, count in self.dtypes.items()),
            "quantization": self.quantization,
        }
        lines = [self.path] + [f"  {name:<16} {value}" for name, value in rows.items() if value]
        lines += [f"  {'problem':<16} {problem}" for problem in self.problems]
        return "\n".join(lines if self.problems else [*lines, f"  {'missing':<16} nothing"])


def _size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"
