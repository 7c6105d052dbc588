"""S2 (Scaling on Scales): one vision backbone, several image scales, the token count of the smallest.

Importing this package registers the model types ``s2_vision`` and ``open_clip_vision`` (in ``remote.py``), so that
``AutoConfig``, ``AutoModel`` and every transformers model with a ``vision_config`` (LLaVA among them) can hold the
tower.
"""

from . import remote  # noqa: F401 - registers
from .configuration import S2VisionConfig
from .modeling import S2VisionModel
from .multiscale import multiscale_forward
from .open_clip_vision import OpenClipVisionConfig, OpenClipVisionModel

__all__ = ["OpenClipVisionConfig", "OpenClipVisionModel", "S2VisionConfig", "S2VisionModel", "multiscale_forward"]
