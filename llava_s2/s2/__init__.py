"""S2 (Scaling on Scales): one vision backbone, several image scales, the token count of the smallest.

Importing this package registers the model types ``s2_vision`` and ``open_clip_vision``, so that ``AutoConfig``,
``AutoModel`` and every transformers model with a ``vision_config`` (LLaVA among them) can hold the tower.
"""

from transformers import AutoConfig, AutoModel

from .configuration import S2VisionConfig
from .modeling import S2VisionModel
from .multiscale import multiscale_forward
from .open_clip_vision import OpenClipVisionConfig, OpenClipVisionModel

AutoConfig.register("open_clip_vision", OpenClipVisionConfig)
AutoModel.register(OpenClipVisionConfig, OpenClipVisionModel)
AutoConfig.register("s2_vision", S2VisionConfig)
AutoModel.register(S2VisionConfig, S2VisionModel)

__all__ = ["OpenClipVisionConfig", "OpenClipVisionModel", "S2VisionConfig", "S2VisionModel", "multiscale_forward"]
