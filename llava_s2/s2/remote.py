"""Registers the S2 tower and what goes with it with transformers' Auto classes.

Imported with this package. Saving a model copies this file and the modules that it imports into the checkpoint and
names `LlavaConfig` in its config.json (`auto_map`), so that `trust_remote_code=True` imports them from there where this
package is not installed. All else of a LLaVA-S2 is stock.
"""

from typing import Any

import transformers
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    LlavaForConditionalGeneration,
    LlavaModel,
)

from .configuration import S2VisionConfig
from .image_processor import S2ImageProcessor
from .modeling import S2VisionModel
from .open_clip_vision import OpenClipVisionConfig, OpenClipVisionModel


class LlavaConfig(transformers.LlavaConfig):
    """LLaVA's config. With an S2 tower it saves the tower's code beside itself; otherwise it is the stock one."""

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if not isinstance(self.vision_config, S2VisionConfig):
            self._auto_class = None  # type: ignore[misc]


AutoConfig.register("open_clip_vision", OpenClipVisionConfig, exist_ok=True)
AutoModel.register(OpenClipVisionConfig, OpenClipVisionModel, exist_ok=True)
AutoConfig.register("s2_vision", S2VisionConfig, exist_ok=True)
AutoModel.register(S2VisionConfig, S2VisionModel, exist_ok=True)
AutoImageProcessor.register(
    S2VisionConfig, image_processor_classes=dict.fromkeys(("pil", "torchvision"), S2ImageProcessor), exist_ok=True
)
AutoConfig.register("llava", LlavaConfig, exist_ok=True)
AutoModel.register(LlavaConfig, LlavaModel, exist_ok=True)
AutoModelForImageTextToText.register(LlavaConfig, LlavaForConditionalGeneration, exist_ok=True)
LlavaConfig.register_for_auto_class()
S2ImageProcessor.register_for_auto_class("AutoImageProcessor")
