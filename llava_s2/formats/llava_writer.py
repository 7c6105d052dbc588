"""A model in the original LLaVA's format: its tensor names, its flat config, its tokenizer files.

The names and config keys are those that the public LLaVA code (v1.2.2, its S2 tower) reads and writes. What such a
checkpoint holds and a model here does not (the tokenizer's files, settings that change nothing here, blocks after the
feature layer) goes with a converted checkpoint in its folder ``llava``, so that the way back gives it all again.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import LlavaProcessor

from llava_s2.errors import InputError
from llava_s2.files import atomic_write
from llava_s2.formats.headers import read_headers
from llava_s2.formats.lazy_tensors import LazyTensor, write_tensors
from llava_s2.formats.names import TOWER_STEMS, select_strategy, split_parts
from llava_s2.model.processor import prefix_tokens
from llava_s2.model.templates import IMAGE_END_TOKEN, IMAGE_START_TOKEN, IMAGE_TOKEN
from llava_s2.s2 import S2VisionConfig
from llava_s2.weight_files import find_file, read_json

FOLDER = "llava"
_LEFTOVER = "leftover.safetensors"
_TOWER_NAMES = "tower_names.json"
TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_KEPT_FILES = (*TOKENIZER_FILES, "generation_config.json")
_TOWER = "vision_tower."
ORIGINAL_TOWER = "model.vision_tower.vision_tower.vision_model."


@dataclass
class Original:
    """What a LLaVA-format checkpoint holds beside its model.

    Attributes:
        config: its config.json; empty where the model does not come from that format.
        files: tokenizer and generation settings, by name.
        tower_names: the names of the vision tower's tensors inside it; none where the tower is elsewhere.
        leftover: tensors that the model has no place for, by their names.
    """

    config: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    tower_names: list[str] = field(default_factory=list)
    leftover: dict[str, LazyTensor] = field(default_factory=dict)

    @classmethod
    def of_llava(
        cls,
        config: dict[str, Any],
        tokenizer: str,
        tensors: Mapping[str, LazyTensor],
        vision_tower: Mapping[str, LazyTensor],
    ) -> "Original":
        """Of a LLaVA-format checkpoint.

        Args:
            config: its config.json. tokenizer: the folder or hub id that its tokenizer is in.
            tensors: of the checkpoint, by name. vision_tower: what the model has of them.
        """
        buffers = {name for name in tensors if name.endswith(("rotary_emb.inv_freq", "embeddings.position_ids"))}
        inside = {name for name in tensors if _TOWER in name} - buffers
        placed = {name for name in inside if tower_place(name, vision_tower)}
        leftover = {name: tensors[name] for name in sorted(buffers | (inside - placed))}
        return cls(config, _files(tokenizer), sorted(placed), leftover)

    @classmethod
    def kept_in(cls, name: str) -> "Original | None":
        """What `save` left in a converted checkpoint, or None where it did not."""
        config = find_file(name, f"{FOLDER}/config.json")
        if config is None:
            return None
        folder = Path(config).parent
        names = folder / _TOWER_NAMES
        leftover = folder / _LEFTOVER
        headers = read_headers(leftover) if leftover.is_file() else {}
        return cls(
            read_json(config),
            _files(str(folder)),
            json.loads(names.read_text(encoding="utf-8")) if names.is_file() else [],
            {name: LazyTensor.stored(header) for name, header in headers.items()},
        )

    def save(self, folder: Path, dtype: torch.dtype | None) -> None:
        """Writes it into a converted checkpoint's folder."""
        inner = folder / FOLDER
        inner.mkdir()
        _write_json(inner / "config.json", self.config)
        for name, path in self.files.items():
            shutil.copyfile(path, inner / name)
        if self.tower_names:
            _write_json(inner / _TOWER_NAMES, self.tower_names)
        if self.leftover:
            write_tensors(inner / _LEFTOVER, self.leftover, dtype)


def _files(name: str) -> dict[str, Path]:
    return {file: Path(path) for file in _KEPT_FILES if (path := find_file(name, file))}


def tower_place(name: str, vision_tower: Mapping[str, Any]) -> str | None:
    """The name that LLaVA's tower tensor has among a model's, whichever way its tower is nested; None if it is gone."""
    inner = name.split(_TOWER)[-1].removeprefix("vision_model.")
    return next((stem + inner for stem in TOWER_STEMS if stem + inner in vision_tower), None)


def original_tensors(
    language_model: Mapping[str, LazyTensor],
    projector: Mapping[str, LazyTensor],
    vision_tower: Mapping[str, LazyTensor],
    original: Original,
    rows: int,
    hidden_act: str,
) -> dict[str, LazyTensor]:
    """A model's tensors under the names of the original format, embedding and head cut to ``rows`` tokens."""
    tensors = {}
    for name, tensor in language_model.items():
        if name in ("embed_tokens.weight", "lm_head.weight"):
            tensor = _first_rows(tensor, rows)
        tensors[name if name == "lm_head.weight" else f"model.{name}"] = tensor
    for name, tensor in projector.items():
        layer, _, kind = name.partition(".")
        if hidden_act != "linear":
            tensors[f"model.mm_projector.{ {'linear_1': 0, 'linear_2': 2}[layer] }.{kind}"] = tensor
        elif layer == "linear_1":
            tensors[f"model.mm_projector.{kind}"] = tensor
    for name in original.tower_names:
        if place := tower_place(name, vision_tower):
            tensors[name] = vision_tower[place]
    return tensors | original.leftover


def _first_rows(tensor: LazyTensor, rows: int) -> LazyTensor:
    if tensor.shape[0] == rows:
        return tensor
    return LazyTensor((rows, *tensor.shape[1:]), tensor.dtype, lambda: tensor.read()[:rows])


def language_model_rows(config: Any, processor: LlavaProcessor, original: Original) -> int:
    """Tokens of the language model without the placeholder that was added to it."""
    rows = config.text_config.vocab_size
    if "vocab_size" in original.config:
        return min(rows, original.config["vocab_size"])
    image = config.image_token_id
    later = {token for token, number in processor.tokenizer.get_vocab().items() if number > image}
    return image if later <= {"<pad>"} else rows


def original_config(
    config: Any,
    processor: LlavaProcessor,
    original: Original,
    rows: int,
    dtype: torch.dtype,
    vision_tower: str | None,
) -> dict[str, Any]:
    """The flat config.json of the original format.

    Settings that the model has are written as it has them; those that it does not have are taken from ``original``, or
    else as LLaVA-1.5 has them.

    Raises:
        InputError: the tower does what the original's cannot, or has no name.
    """
    vision: Any = config.vision_config
    text = config.text_config
    if isinstance(vision, S2VisionConfig):
        usual = S2VisionConfig(
            backbone_config=vision.backbone_config, scales=vision.scales, feature_layer=vision.feature_layer
        )
        for setting in ("max_split_size", "resize_output_to_idx", "merge", "split", "keep_aspect"):
            if getattr(vision, setting) != getattr(usual, setting):
                raise InputError(f"the original LLaVA has no {setting}={getattr(vision, setting)!r} in its S2 tower")
        scales, layer, feature = vision.scales, vision.feature_layer, "patch"
    else:
        scales, layer = [vision.image_size], config.vision_feature_layer
        strategy, prefix = config.vision_feature_select_strategy, prefix_tokens(vision)
        features = [
            name
            for name in ("patch", "cls_patch")
            if select_strategy(original.config | {"mm_vision_select_feature": name}, prefix) == strategy
        ]
        if not features:
            raise InputError(
                f"the original LLaVA has no way to say that vision_feature_select_strategy is {strategy} of a tower "
                f"with {prefix} tokens before its patches"
            )
        feature = features[0]
        feature = features[0]
    image_processor: Any = processor.image_processor
    aspect_ratio = "pad" if getattr(image_processor, "do_pad", False) else "square"
    if "height" in image_processor.size and aspect_ratio == "square":
        aspect_ratio = "resize"
    vocabulary = processor.tokenizer.get_vocab()
    s2 = len(scales) > 1
    tower = vision_tower or original.config.get("mm_vision_tower") or getattr(config, "mm_vision_tower", None)
    if tower is None:
        raise InputError("the original LLaVA loads its vision tower by name; name the CLIP with --vision_tower")
    model = {
        "vocab_size": rows,
        "mm_vision_tower": str(tower),
        "mm_vision_select_layer": layer,
        "mm_vision_select_feature": feature,
        "mm_hidden_size": vision.hidden_size,
        "mm_projector_type": "linear" if config.projector_hidden_act == "linear" else "mlp2x_gelu",
        "mm_use_im_start_end": IMAGE_START_TOKEN + IMAGE_TOKEN + IMAGE_END_TOKEN in str(processor.chat_template),
        "mm_use_im_patch_token": "<im_patch>" in vocabulary,
        "image_aspect_ratio": aspect_ratio,
        "s2": s2,
        "s2_scales": ",".join(map(str, scales)) if s2 else None,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    # What the original takes where a key is absent.
    absent = {
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_projector_type": "linear",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": "square",
        "s2": False,
        "s2_scales": None,
    }
    written = dict(original.config) or _fresh(text)
    if not s2:
        written.pop("s2_scales", None)
    for key, value in model.items():
        said: Any = written.get(key)
        if said is None:
            said = absent.get(key)
        if key == "s2_scales" and said is not None:
            said = ",".join(map(str, sorted(map(int, said.split(",") if isinstance(said, str) else said))))
        if said != value:
            written[key] = value
    return written


def _fresh(text: Any) -> dict[str, Any]:
    """The keys of a LLaVA config that a language model's config tells, and LLaVA-1.5's for the others."""
    settings = {key: value for key, value in text.to_dict().items() if not key.startswith("_")}
    rope = settings.pop("rope_parameters", None) or {}
    scaling = {("type" if key == "rope_type" else key): value for key, value in rope.items() if key != "rope_theta"}
    name = {"llama": "Llama", "mistral": "Mistral"}.get(text.model_type)
    if name is None:
        raise InputError(f"the original LLaVA has no class for a {text.model_type} language model")
    for key in ("dtype", "transformers_version"):
        settings.pop(key, None)
    return settings | {
        "architectures": [f"Llava{name}ForCausalLM"],
        "model_type": f"llava_{text.model_type}",
        "rope_theta": rope.get("rope_theta", 10000.0),
        "rope_scaling": None if scaling.get("type", "default") == "default" else scaling,
        "freeze_mm_mlp_adapter": False,
        "image_aspect_ratio": "pad",
        "mm_patch_merge_type": "flat",
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "tokenizer_model_max_length": 2048,
        "tokenizer_padding_side": "right",
        "tune_mm_mlp_adapter": False,
        "use_mm_proj": True,
    }


def write_projector(adapter: Path) -> None:
    """Writes the projector of an adapter's folder as LLaVA's stage 1 leaves it: ``mm_projector.bin`` beside it."""
    numbers = {"linear_1": 0, "linear_2": 2}
    found = split_parts(load_file(adapter / "adapter_model.safetensors")).projector
    renamed = {name.partition(".")[::2]: tensor for name, tensor in found.items()}
    with atomic_write(adapter / "mm_projector.bin") as path:
        torch.save({f"model.mm_projector.{numbers[layer]}.{kind}": t for (layer, kind), t in renamed.items()}, path)


def write_original_files(folder: Path, config: dict[str, Any], original: Original, source: str) -> None:
    """Writes config.json, tokenizer and generation settings of the original format."""
    if not any(file in original.files for file in ("tokenizer.model", "tokenizer.json")):
        raise InputError(
            f"{source}: the original LLaVA needs the language model's own tokenizer files; name its folder with --base"
        )
    for name, path in original.files.items():
        shutil.copyfile(path, folder / name)
    _write_json(folder / "config.json", config)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
