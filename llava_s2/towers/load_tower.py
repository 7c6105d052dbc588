"""A vision tower by its name: its config, its weights, and how its images are normalised."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoModel, PreTrainedConfig, PreTrainedModel

from llava_s2.errors import InputError
from llava_s2.s2 import S2VisionConfig, S2VisionModel
from llava_s2.s2.backbones import default_feature_layer, model_class
from llava_s2.towers.inner_tower import AFTER_BLOCKS, inner_config, inner_tensors
from llava_s2.towers.named_tower import NamedTower
from llava_s2.weight_files import find_file, first_line, list_names, read_json


def tower_config(
    vision_tower: str | Path,
    scales: list[int],
    feature_layer: int | None = None,
    image_aspect_ratio: str = "pad",
    resize_output_to_idx: int = 0,
) -> S2VisionConfig:
    """The config of an S2 tower on a named backbone, from configs alone; arguments as of ``assemble``.

    Raises:
        InputError: no such tower, or scales or a layer that it does not have.
    """
    backbone_config = load_vision_config(vision_tower)
    keep_aspect: Any = {"keep": True, "dynamic": "dynamic"}.get(image_aspect_ratio, False)
    try:
        layer = default_feature_layer(backbone_config) if feature_layer is None else feature_layer
        return S2VisionConfig(
            backbone_config=backbone_config,
            scales=scales,
            feature_layer=layer,
            keep_aspect=keep_aspect,
            resize_output_to_idx=resize_output_to_idx,
        )
    except ValueError as error:
        raise InputError(f"{vision_tower}: {error}") from error


def load_vision_config(name: str | Path) -> PreTrainedConfig:
    """The config of a vision model, or of the vision part of a two-tower model or of a whole VLM."""
    if (tower := NamedTower.parse(name)) is not None:
        return tower.config()
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # transformers' checks of a config have errors of their own
        raise InputError(
            f"vision tower {name}: no such folder or reachable hub id of a vision model; name one with --vision_tower "
            f"({' '.join(str(error).split())[:300]})"
        ) from error
    return inner_config(config)


def load_vision_backbone(
    name: str | Path, config: PreTrainedConfig, dtype: torch.dtype, tensors: dict[str, Tensor] | None = None
) -> PreTrainedModel:
    """A vision model with the weights in its folder, or with the tensors given."""
    if not tensors and (tower := NamedTower.parse(name)) is not None:
        return tower.load(dtype)
    options: dict[str, Any] = {"config": config, "dtype": dtype, "output_loading_info": True}
    try:
        if tensors is None or not tensors:
            own = AutoConfig.from_pretrained(name)
            if own.model_type == config.model_type or own.model_type == "s2_vision":
                tensors = None
            else:
                tensors = inner_tensors(name, config)
        if tensors:
            model, report = model_class(config).from_pretrained(None, state_dict=tensors, **options)
        elif config.model_type in ("blip_2_vision_model", "metaclip_2_vision_model"):  # which AutoModel does not know
            model, report = model_class(config).from_pretrained(name, **options)
        else:
            model, report = AutoModel.from_pretrained(name, **options)
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"vision tower {name}: {first_line(error)}") from error
    if missing := [key for key in report["missing_keys"] if not AFTER_BLOCKS.match(key)]:
        raise InputError(f"vision tower {name}: the weights lack {list_names(missing)}")
    return model.backbone if isinstance(model, S2VisionModel) else model


def load_image_statistics(name: str | Path) -> tuple[list[float], list[float]]:
    """Mean and standard deviation by which the tower's images are normalised, per channel, for values in 0 … 1."""
    if (tower := NamedTower.parse(name)) is not None:
        return tower.image_statistics()
    config_file = find_file(name, "config.json")
    if config_file is not None and "mean" in (timm := read_json(config_file).get("pretrained_cfg") or {}):
        return [float(value) for value in timm["mean"]], [float(value) for value in timm["std"]]
    for file in ("preprocessor_config.json", "processor_config.json"):  # whatever the class that reads it is
        found = find_file(name, file)
        settings = read_json(found) if found else {}
        settings = settings.get("image_processor", settings)
        if isinstance(settings, dict) and "image_mean" in settings and "image_std" in settings:
            try:
                statistics = [float(v) for v in settings["image_mean"]], [float(v) for v in settings["image_std"]]
                return _checked(name, *statistics)
            except (TypeError, ValueError) as error:
                raise InputError(f"vision tower {name}: {file} cannot be used ({first_line(error)})") from error
    if not any(find_file(name, file) for file in ("preprocessor_config.json", "processor_config.json")):
        raise InputError(
            f"vision tower {name}: preprocessor_config.json is missing, which says how its images are normalised"
        )
    try:
        image_processor = AutoImageProcessor.from_pretrained(name, backend="pil")
        mean, std = (list(map(float, getattr(image_processor, key))) for key in ("image_mean", "image_std"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"vision tower {name}: preprocessor_config.json cannot be used ({first_line(error)})"
        ) from error
    return _checked(name, mean, std)


def _checked(name: str | Path, mean: list[float], std: list[float]) -> tuple[list[float], list[float]]:
    if len(mean) != 3 or len(std) != 3 or not all(std):
        raise InputError(
            f"vision tower {name}: preprocessor_config.json has image_mean {mean} and image_std {std}; both are three "
            "numbers, those of image_std not 0"
        )
    return mean, std
