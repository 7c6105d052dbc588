"""Function-preserving widening: S² training that starts from what a single-scale LLaVA knows."""

from pathlib import Path
from typing import Any

import torch
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from llava_s2.errors import InputError
from llava_s2.files import new_folder
from llava_s2.model.assemble import build
from llava_s2.model.checkpoint import split_parts
from llava_s2.model.loading import load_pretrained
from llava_s2.model.processor import aspect_ratio, build_processor
from llava_s2.s2 import S2VisionConfig, S2VisionModel


def widen(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, scales: list[int]
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Brings a single-scale LLaVA to the S² tower without changing its answers.

    The projector's first layer keeps its columns for scale 1, and those of the new scales start at zero: at step 0 the
    new model computes exactly what the old one does on scale 1 of the new tower. Scale 1 is the tower's own bicubic
    reduction of the largest scale; the old model's processor reduces the file's picture directly, with PIL's
    antialiasing, so on pictures rather than on tensors the two differ by that resampling.

    Args:
        model: single-scale, from ``load_pretrained``; its weights, cut to the layers in use, become the new model's.
        processor: the model's.
        scales: image sides in pixels, ascending, the first one the tower's own.

    Returns:
        The new model, in eval mode, and its processor.

    Raises:
        InputError: the model has several scales already, reads several layers or the CLS token, or the tower cannot
            split the scales.
    """
    config: Any = model.config
    tower = model.model.vision_tower
    if isinstance(tower, S2VisionModel):
        if len(tower.config.scales) > 1:
            raise InputError(f"the model has the scales {tower.config.scales} already")
        backbone, feature_layer = tower.backbone, tower.config.feature_layer
    else:
        backbone, feature_layer = tower, config.vision_feature_layer
        takes_cls = config.vision_feature_select_strategy == "full" and processor.num_additional_image_tokens > 0
        if not isinstance(feature_layer, int) or takes_cls:
            raise InputError("only a model that reads the patches of one vision layer can be widened")
    try:
        S2VisionConfig(backbone_config=backbone.config, scales=scales, feature_layer=feature_layer)
    except ValueError as error:
        raise InputError(str(error)) from error

    parts = split_parts(model.state_dict())
    if config.text_config.tie_word_embeddings:
        parts.language_model.pop("lm_head.weight", None)
    narrow = parts.projector["linear_1.weight"]
    new_columns = torch.zeros(
        narrow.shape[0], narrow.shape[1] * (len(scales) - 1), dtype=narrow.dtype, device=narrow.device
    )
    parts.projector["linear_1.weight"] = torch.cat([narrow, new_columns], dim=1)

    wide_tower = S2VisionModel.wrap(backbone, scales, feature_layer=feature_layer)
    wide_processor = build_processor(
        processor.tokenizer,
        wide_tower.config,
        processor.image_processor.image_mean,
        processor.image_processor.image_std,
        image_aspect_ratio=aspect_ratio(processor, config.vision_config),
        template=str(processor.chat_template),
    )
    wide = build(
        parts.language_model,
        config.text_config,
        parts.projector,
        wide_tower,
        wide_processor,
        config._name_or_path,
        projector_hidden_act=config.projector_hidden_act,
        dtype=model.dtype,
    )
    return wide, wide_processor


def create_widened(
    dst: str | Path,
    source: str | Path,
    scales: list[int],
    *,
    base: str | None = None,
    vision_tower: str | None = None,
    dtype: str = "auto",
) -> None:
    """Writes the S² LLaVA that a single-scale one becomes, as a folder in the native format.

    Args:
        dst: the new folder; must not exist, or be empty.
        source, base, vision_tower, dtype: as ``load_pretrained`` takes them; the model is in memory.
        scales: see `widen`.

    Raises:
        InputError: see `widen` and ``load_pretrained``.
    """
    model, processor = widen(*load_pretrained(source, base, vision_tower=vision_tower, dtype=dtype), scales)
    save_native(model, processor, dst)


def save_native(model: LlavaForConditionalGeneration, processor: LlavaProcessor, dst: str | Path) -> None:
    """Writes a model in memory and its processor as a new folder, which appears when it is whole."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    with new_folder(dst, size) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
