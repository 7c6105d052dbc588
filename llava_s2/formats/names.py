"""The names of a LLaVA's tensors in each format, in one table that is read both ways."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

# Where a tower's layers may stand under model.vision_tower, by tower and by version of transformers.
TOWER_STEMS = ("backbone.", "backbone.vision_model.", "", "vision_model.")


# What of a flat config.json only VILA writes.
_VILA = ("vision_resolution", "interpolate_mode", "num_video_frames", "drop_path_rate", "llm_cfg", "vision_tower_cfg")


def select_strategy(config: Mapping[str, Any], prefix_tokens: int) -> Literal["default", "full"]:
    """LLaVA's ``mm_vision_select_feature`` as the strategy of transformers, which with ``default`` drops one token.

    ``patch`` drops the CLS token. Of a tower without one (SigLIP) LLaVA and LLaVA-NeXT keep all patches, while VILA
    drops the first.

    Args:
        config: the flat config.json. prefix_tokens: the tower's, before its patches.
    """
    if config.get("mm_vision_select_feature", "patch") == "cls_patch":
        return "full"
    return "default" if prefix_tokens or any(key in config for key in _VILA) else "full"


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
