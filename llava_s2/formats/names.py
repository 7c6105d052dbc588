"""The names of a LLaVA's tensors in each format, in one table that is read both ways."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Where a tower's layers may stand under model.vision_tower, by tower and by version of transformers.
TOWER_STEMS = ("backbone.", "backbone.vision_model.", "", "vision_model.")


@dataclass(frozen=True)
class Parts:
    """A LLaVA model's tensors under the names that its three parts have in stock transformers.

    ``language_model``: as in the base model, plus ``lm_head.weight``; ``projector``: ``linear_1.weight`` …, or the
    numbers of LLaVA's ``nn.Sequential``; ``vision_tower``: as in the file, from the tower down.
    """

    language_model: dict[str, Any]
    projector: dict[str, Any]
    vision_tower: dict[str, Any]


def split_parts(tensors: Mapping[str, Any]) -> Parts:
    """Sorts the tensors of any LLaVA or Llama-like checkpoint, whatever its prefixes, into the three parts."""
    parts = Parts({}, {}, {})
    for name, tensor in tensors.items():
        if name.endswith("rotary_emb.inv_freq") or name.endswith("embeddings.position_ids"):
            continue  # buffers that old versions saved
        for marker, part in (
            ("vision_tower.vision_tower.", parts.vision_tower),
            ("vision_tower.", parts.vision_tower),
            ("multi_modal_projector.", parts.projector),
            ("mm_projector.", parts.projector),
        ):
            if marker in name:
                part[name.split(marker, 1)[1]] = tensor
                break
        else:
            if name.endswith("lm_head.weight"):
                parts.language_model["lm_head.weight"] = tensor
            else:
                inner = name.split("language_model.", 1)[-1].removeprefix("base_model.model.")
                while inner.startswith("model."):
                    inner = inner.removeprefix("model.")
                parts.language_model[inner] = tensor
    return parts
