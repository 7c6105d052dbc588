"""The native format: a folder that stock transformers loads. Read as configs and lazy tensors, loaded, and written."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from llava_s2.errors import InputError
from llava_s2.files import new_folder
from llava_s2.formats.base_record import BaseRecord
from llava_s2.formats.configs import read_config, saved_processor
from llava_s2.formats.contents import LlavaContents, generation_config
from llava_s2.formats.lazy_tensors import lazily, lazy_tensors, weight_bytes, write_weights
from llava_s2.formats.llava_source import SourceMetadata
from llava_s2.formats.tensor_names import Format, split
from llava_s2.model.assemble import torch_dtype
from llava_s2.s2 import S2VisionConfig, S2VisionModel
from llava_s2.towers.load_tower import load_vision_backbone, load_vision_config
from llava_s2.weight_files import find_file, first_line, list_names

logger = logging.get_logger(__name__)


def read_native(name: str, template: str | None = None) -> LlavaContents:
    """A full model in transformers' format, this project's own or a single-scale LLaVA.

    Raises:
        InputError: files are missing or damaged.
    """
    config = read_config(name)
    processor = saved_processor(name, template)
    if find_file(name, "generation_config.json"):
        generation = GenerationConfig.from_pretrained(name)
    else:
        generation = generation_config(processor, config.text_config)
    return LlavaContents(config, processor, generation, split(lazy_tensors(name)))


def load_native(
    name: str,
    vision_tower: str | None,
    replace_vision_tower: bool,
    dtype: str | torch.dtype,
    options: dict[str, Any],
    template: str | None = None,
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Loads such a model; its own tower wins over the one named, unless ``replace_vision_tower``.

    Raises:
        InputError: the weights are not whole, or do not fit the config.
    """
    if vision_tower is not None and replace_vision_tower:
        model = with_tower(read_native(name, template), vision_tower, None if dtype == "auto" else torch_dtype(dtype))
        return model.build(name, None if dtype == "auto" else torch_dtype(dtype), **options), model.processor
    if vision_tower is not None:
        logger.warning(
            f"{name}: the vision tower inside is used, not {vision_tower}; --replace_vision_tower would take that one"
        )
    config = read_config(name)
    lazy_tensors(name)  # checks that the files are whole
    processor = saved_processor(name, template)
    try:
        loaded: Any = LlavaForConditionalGeneration.from_pretrained(
            name,
            config=config,
            dtype=dtype if dtype == "auto" else torch_dtype(dtype),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, in one line
            **options,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{name}: {first_line(error)}") from error
    model, report = loaded
    if report["mismatched_keys"]:
        key, found, wanted = sorted(report["mismatched_keys"])[0]
        raise InputError(f"{name}: {key} has the shape {tuple(found)}, but config.json says {tuple(wanted)}")
    if report["missing_keys"]:
        raise InputError(f"{name}: the weights lack {list_names(report['missing_keys'])}")
    return model.eval(), processor


def with_tower(model: LlavaContents, vision_tower: str, dtype: torch.dtype | None) -> LlavaContents:
    """The model with another tower's weights, and all of its own settings.

    Raises:
        InputError: the tower's features have another width, or it cannot be run at the model's scales.
    """
    tower = tower_like(model.config.vision_config, vision_tower, dtype or model.dtype)
    tensors = replace(model.tensors, vision_tower=lazily(tower.state_dict()))
    config = copy.deepcopy(model.config)
    config.vision_config = tower.config
    return replace(model, config=config, tensors=tensors)


def tower_like(wanted: Any, name: str, dtype: torch.dtype) -> PreTrainedModel:
    """The vision model ``name`` as the kind of tower that a config asks for: at its scales, or as it is."""
    found = load_vision_config(name)
    if isinstance(found, S2VisionConfig):
        found = found.backbone_config
    sizes = [
        S2VisionConfig(backbone_config=config, feature_layer=wanted.feature_layer).backbone_hidden_size
        if isinstance(wanted, S2VisionConfig)
        else getattr(config, "hidden_size", None)
        for config in (found, wanted.backbone_config if isinstance(wanted, S2VisionConfig) else wanted)
    ]
    if sizes[0] != sizes[1]:
        raise InputError(
            f"vision tower {name}: its features are {sizes[0]} wide, the checkpoint's are {sizes[1]}; "
            "name the tower that it was trained with"
        )
    return at_scales(load_vision_backbone(name, found, dtype), wanted, name)


def at_scales(backbone: PreTrainedModel, wanted: PreTrainedConfig, name: str) -> PreTrainedModel:
    """The backbone as an S2 tower with the settings of one, or as it is where ``wanted`` is no S2 tower's config."""
    if not isinstance(wanted, S2VisionConfig):
        return backbone
    try:
        return S2VisionModel.wrap(backbone, wanted.scales, **wanted.options)
    except ValueError as error:
        raise InputError(f"vision tower {name}: {error}") from error


def write_native(
    model: LlavaContents,
    dst: str | Path,
    dtype: torch.dtype | None = None,
    *,
    names: Format = "transformers",
    record: BaseRecord | None = None,
    source: SourceMetadata | None = None,
) -> None:
    """Writes transformers' format; the folder appears when it is whole.

    Args:
        dst: a new or empty folder. dtype: to convert to; None keeps each tensor's own.
        names: those of the tensors; every version of transformers knows the hub's.
        record: of the folder as an adapter's base, where it is known.
        source: what the LLaVA-format checkpoint that it comes from holds beside the model.
    """
    config, tensors = model.config, model.tensors.named(names)
    config.architectures = ["LlavaForConditionalGeneration"]
    config.dtype = dtype or model.dtype
    backbone = getattr(config.vision_config, "backbone_config", None)
    for part in (config, config.text_config, config.vision_config, backbone):
        if part is not None and Path(part._name_or_path).exists():
            part._name_or_path = ""  # a folder of this machine
    with new_folder(dst, weight_bytes(tensors, dtype)) as folder:
        config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
        model.processor.save_pretrained(folder)
        if source is not None:
            source.save(folder, dtype)
        if record is not None:
            record.save(folder)
        write_weights(folder, tensors, dtype)
