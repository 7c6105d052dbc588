"""A model written in the original LLaVA's format: its tensor names, its flat config, its tokenizer files.

The names and config keys are those that the public LLaVA code (v1.2.2, its S2 tower) reads and writes.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import LlavaProcessor

from llava_s2.errors import InputError
from llava_s2.files import atomic_write, new_folder
from llava_s2.formats.contents import LlavaContents
from llava_s2.formats.lazy_tensors import LazyTensor, weight_bytes, write_weights
from llava_s2.formats.llava_config import DEFAULTS, LlavaSettings, llava_template, parse_scales
from llava_s2.formats.llava_source import SourceMetadata, write_json
from llava_s2.formats.tensor_names import Components, split, tower_place
from llava_s2.model.processor import aspect_ratio, prefix_tokens
from llava_s2.model.projector import single_layer
from llava_s2.model.templates import IMAGE_END_TOKEN, IMAGE_START_TOKEN, IMAGE_TOKEN, template_name
from llava_s2.s2 import S2VisionConfig


def write_llava(
    model: LlavaContents,
    source: SourceMetadata,
    dst: Path,
    name: str,
    vision_tower: str | None,
    dtype: torch.dtype | None,
) -> None:
    """Writes a folder in the original LLaVA's format; it appears when it is whole.

    Args:
        source: what a LLaVA-format checkpoint held beside the model, and the tokenizer's files.
        name: the checkpoint that errors are about.
        vision_tower: the name to write; default: the one that the model comes with.
        dtype: of the new weights; None keeps each tensor's own.

    Raises:
        InputError: the tower does what the original's cannot, or has no name; or the tokenizer's files are missing.
    """
    rows = _language_model_rows(model.config, model.processor, source)
    config = _flat_config(model.config, model.processor, source, rows, dtype or model.dtype, vision_tower)
    tensors = _tensors(model, source, rows)
    if not {"tokenizer.model", "tokenizer.json"} & source.files.keys():
        raise InputError(
            f"{name}: the original LLaVA needs the language model's own tokenizer files; name its folder with --base"
        )
    with new_folder(dst, weight_bytes(tensors, dtype)) as folder:
        source.copy_files(folder)
        write_json(folder / "config.json", config)
        write_weights(folder, tensors, dtype)


def write_projector(adapter: Path) -> None:
    """Writes what an adapter's folder holds as LLaVA's stage 1 leaves it: ``mm_projector.bin`` beside it.

    That is the projector, and the rows of tokens that learnt.
    """
    trained = split(load_file(adapter / "adapter_model.safetensors"))
    learnt = list(trained.language_model.values())  # the embedding's rows alone, under PEFT's name
    rows = {"embed_tokens.weight": learnt[0]} if learnt else {}
    projector = single_layer(trained.projector) or trained.projector
    with atomic_write(adapter / "mm_projector.bin") as path:
        torch.save(Components(rows, projector, {}).named("llava"), path)


def _tensors(model: LlavaContents, source: SourceMetadata, rows: int) -> dict[str, LazyTensor]:
    """The model's tensors under the original's names, embedding and head cut to ``rows`` tokens."""
    found = model.tensors
    language_model = dict(found.language_model)
    for name in ("embed_tokens.weight", "lm_head.weight"):
        if name in language_model:
            language_model[name] = language_model[name].first_rows(rows)
    projector = found.projector
    if model.config.projector_hidden_act == "linear":  # a single layer: the second one is the identity
        projector = {name: projector[f"linear_1.{name}"] for name in ("weight", "bias")}
    tower = {
        name: found.vision_tower[place]
        for name in source.tower_names
        if (place := tower_place(name, found.vision_tower))
    }
    return Components(language_model, projector, {}).named("llava") | tower | source.leftover


def _language_model_rows(config: Any, processor: LlavaProcessor, source: SourceMetadata) -> int:
    """Tokens of the language model without the placeholder that was added to it."""
    rows = config.text_config.vocab_size
    if "vocab_size" in source.config:
        return min(rows, source.config["vocab_size"])
    image = config.image_token_id
    later = {token for token, number in processor.tokenizer.get_vocab().items() if number > image}
    return image if later <= {"<pad>"} else rows


def _flat_config(
    config: Any,
    processor: LlavaProcessor,
    source: SourceMetadata,
    rows: int,
    dtype: torch.dtype,
    vision_tower: str | None,
) -> dict[str, Any]:
    """The flat config.json of the original format.

    Settings that the model has are written as it has them; those that it does not have are taken from ``source``, or
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
        feature = _select_feature(source, config.vision_feature_select_strategy, prefix_tokens(vision))
    vocabulary = processor.tokenizer.get_vocab()
    s2 = len(scales) > 1
    tower = vision_tower or source.config.get("mm_vision_tower") or getattr(config, "mm_vision_tower", None)
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
        "image_aspect_ratio": aspect_ratio(processor, vision),
        "s2": s2,
        "s2_scales": ",".join(map(str, scales)) if s2 else None,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    written = dict(source.config) or _fresh(text)
    if not s2:
        written.pop("s2_scales", None)
    for key, value in model.items():
        said: Any = DEFAULTS.get(key) if written.get(key) is None else written[key]
        if key == "s2_scales" and said is not None:
            said = ",".join(map(str, sorted(parse_scales(said, key))))
        if said != value:
            written[key] = value
    template = template_name(str(processor.chat_template))
    if template is not None and template != _template_read_from(written):
        written["version"] = template  # as `llava_template` reads it; the original takes it on its command line
    return written


def _template_read_from(config: dict[str, Any]) -> str | None:
    try:
        return llava_template(config, [], None)
    except InputError:
        return None


def _select_feature(source: SourceMetadata, strategy: str, prefix_tokens: int) -> str:
    """The ``mm_vision_select_feature`` that has the visual tokens of a strategy of transformers."""
    for feature in ("patch", "cls_patch"):
        said = source.config | {"mm_vision_select_feature": feature, "mm_vision_tower": "", "image_aspect_ratio": "pad"}
        if LlavaSettings.read(said | {"s2": False}, "").select_strategy(prefix_tokens) == strategy:
            return feature
    raise InputError(
        f"the original LLaVA has no way to say that vision_feature_select_strategy is {strategy} of a tower with "
        f"{prefix_tokens} tokens before its patches"
    )


def _fresh(text: Any) -> dict[str, Any]:
    """The keys of a LLaVA config that a language model's config has, and LLaVA-1.5's for the others."""
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
        **DEFAULTS,
        "freeze_mm_mlp_adapter": False,
        "image_aspect_ratio": "pad",
        "mm_patch_merge_type": "flat",
        "mm_projector_type": "mlp2x_gelu",
        "tokenizer_model_max_length": 2048,
        "tokenizer_padding_side": "right",
        "tune_mm_mlp_adapter": False,
        "use_mm_proj": True,
    }
