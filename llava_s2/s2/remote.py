"""What a checkpoint with an S2 tower carries to load where this package is not installed.

`llava-s2 convert` copies this file and the modules that it imports into the checkpoint and names its `LlavaConfig` in
config.json (`auto_map`); transformers imports them from there with `trust_remote_code=True`. All else is stock.
"""

import transformers
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, LlavaForConditionalGeneration

from .backbones import geometry  # noqa: F401 - so that transformers copies the files
from .configuration import S2VisionConfig
from .modeling import S2VisionModel
from .multiscale import multiscale_forward  # noqa: F401
from .open_clip_vision import OpenClipVisionConfig, OpenClipVisionModel


class LlavaConfig(transformers.LlavaConfig):
    """LLaVA's config; importing its module registers the S2 tower."""


AutoConfig.register("open_clip_vision", OpenClipVisionConfig, exist_ok=True)
AutoModel.register(OpenClipVisionConfig, OpenClipVisionModel, exist_ok=True)
AutoConfig.register("s2_vision", S2VisionConfig, exist_ok=True)
AutoModel.register(S2VisionConfig, S2VisionModel, exist_ok=True)
AutoModelForImageTextToText.register(LlavaConfig, LlavaForConditionalGeneration, exist_ok=True)
