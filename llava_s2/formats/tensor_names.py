"""The names of a LLaVA's tensors in each format, in one table that is read both ways."""

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Format = Literal["transformers", "hub", "llava"]
_FORMATS: tuple[Format, ...] = ("transformers", "hub", "llava")
# Component and place in it, then the prefix in transformers' state dict, in llava-hf's files, and in LLaVA's.
_TABLE = (
    ("language_model.lm_head.", "lm_head.", "language_model.lm_head.", "lm_head."),
    ("language_model.", "model.language_model.", "language_model.model.", "model."),
    (
        "projector.linear_1.",
        "model.multi_modal_projector.linear_1.",
        "multi_modal_projector.linear_1.",
        "model.mm_projector.0.",
    ),
    (
        "projector.linear_2.",
        "model.multi_modal_projector.linear_2.",
        "multi_modal_projector.linear_2.",
        "model.mm_projector.2.",
    ),
    ("projector.", "model.multi_modal_projector.", "multi_modal_projector.", "model.mm_projector."),
    ("vision_tower.", "model.vision_tower.", "vision_tower.", "model.vision_tower.vision_tower."),
)
# The same prefix is written with and without a leading "model."; a bare language model's names have neither.
_PREFIXES = sorted(
    {(prefix.removeprefix(cut), row[0]) for row in _TABLE for prefix in row[1:] for cut in ("", "model.")},
    key=lambda pair: -len(pair[0]),
)
_WRAPPERS = re.compile(r"^(?:(?:module|base_model\.model)\.)+")  # of data parallelism and of PEFT
_BUFFERS = ("rotary_emb.inv_freq", "embeddings.position_ids")  # which old versions saved
# Where a tower's layers may stand in the vision tower, by tower and by version of transformers.
_TOWER_STEMS = ("backbone.", "backbone.vision_model.", "", "vision_model.")


@dataclass
class Components:
    """The state dicts of a LLaVA's three components, under the names that they have by themselves in transformers.

    Attributes:
        language_model: as in the base model, and ``lm_head.weight``.
        projector: ``linear_1.weight`` …; ``weight`` and ``bias`` of LLaVA's single linear layer.
        vision_tower: as in the file, from the tower down.
    """

    language_model: dict[str, Any]
    projector: dict[str, Any]
    vision_tower: dict[str, Any]

    def named(self, to: Format) -> dict[str, Any]:
        """All tensors under the names of a format."""
        return {
            full_name(component, name, to): tensor
            for component, tensors in vars(self).items()
            for name, tensor in tensors.items()
        }


def locate(name: str) -> tuple[str, str]:
    """The component that a tensor of any format belongs to, and its name there."""
    name = _WRAPPERS.sub("", name)
    prefix, place = next((prefix, place) for prefix, place in _PREFIXES if name.startswith(prefix))
    component, _, inner = (place + name[len(prefix) :]).partition(".")
    return component, inner


def full_name(component: str, name: str, to: Format) -> str:
    """The name in a format of what `locate` found. The hub and LLaVA know CLIP with its ``vision_model`` around it."""
    if component == "vision_tower" and to != "transformers":
        name = "vision_model." + name.removeprefix("vision_model.")
    place = f"{component}.{name}"
    row = next(row for row in _TABLE if place.startswith(row[0]))
    return row[1 + _FORMATS.index(to)] + place[len(row[0]) :]


def is_old_buffer(name: str) -> bool:
    """Whether this is a buffer that old versions of transformers saved and new ones compute."""
    return name.endswith(_BUFFERS)


def split(tensors: Mapping[str, Any]) -> Components:
    """Sorts the tensors of any LLaVA or language model, whatever its prefixes, into the three components."""
    components = Components({}, {}, {})
    for name, tensor in tensors.items():
        if not is_old_buffer(name):
            component, inner = locate(name)
            getattr(components, component)[inner] = tensor
    return components


def tower_place(name: str, vision_tower: Container[str]) -> str | None:
    """The name among a vision tower's of a tensor whose tower is nested otherwise; None where it has no such tensor."""
    inner = name.split("vision_tower.")[-1].removeprefix("backbone.").removeprefix("vision_model.")
    return next((stem + inner for stem in _TOWER_STEMS if stem + inner in vision_tower), None)
