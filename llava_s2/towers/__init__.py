"""Vision models that are not transformers': open_clip's, timm's, MAE's files, and the towers inside whole VLMs.

Importing this package has ``S2VisionModel.wrap`` take models of open_clip and timm.
"""

from llava_s2.s2.modeling import ADAPTERS
from llava_s2.towers.timm_tower import as_pretrained

ADAPTERS.append(as_pretrained)

__all__ = ["as_pretrained"]
