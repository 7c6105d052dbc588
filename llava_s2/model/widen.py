"""Function-preserving widening: S² training that starts from what a single-scale LLaVA knows."""

from typing import Any

import torch
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from llava_s2.errors import InputError
from llava_s2.formats.contents import LlavaContents
from llava_s2.formats.lazy_tensors import lazily
from llava_s2.model.processor import aspect_ratio, build_processor
from llava_s2.s2 import S2VisionConfig, S2VisionModel


def widen(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, scales: list[int]
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Brings a single-scale LLaVA to the S² tower without changing its answers.

    The projector's first layer keeps its columns for scale 1, and those of the new scales start at zero: at step 0 the
    new model computes exactly what the old one does on scale 1 of the new tower. Scale 1 is the tower's own bicubic
    reduction of the largest scale; the old model's processor reduces the file's image directly, with PIL's
    antialiasing, so on images rather than on tensors the two differ by that resampling.

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

    contents = LlavaContents.in_memory(model, processor)
    tensors = contents.tensors
    narrow = tensors.projector["linear_1.weight"].read()
    new_columns = narrow.new_zeros(narrow.shape[0], narrow.shape[1] * (len(scales) - 1))
    projector = tensors.projector | lazily({"linear_1.weight": torch.cat([narrow, new_columns], dim=1)})
    wide_tower = S2VisionModel.wrap(backbone, scales, feature_layer=feature_layer)
    wide_processor = build_processor(
        processor.tokenizer,
        wide_tower.config,
        processor.image_processor.image_mean,
        processor.image_processor.image_std,
        image_aspect_ratio=aspect_ratio(processor, config.vision_config),
        template=str(processor.chat_template),
    )
    wide = LlavaContents.put_together(
        tensors.language_model,
        config.text_config,
        projector,
        lazily(wide_tower.state_dict()),
        wide_tower.config,
        wide_processor,
        projector_hidden_act=config.projector_hidden_act,
    )
    return wide.build(config._name_or_path, model.dtype), wide_processor
