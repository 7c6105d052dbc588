"""Vision models that are not transformers': open_clip's, timm's, MAE's files, and the towers inside whole VLMs.

Importing this package has ``S2VisionModel.wrap`` take models of open_clip and timm.
"""

from llava_s2.s2.modeling import ADAPTERS
from llava_s2.towers.inner_tower import as_siglip
from llava_s2.towers.timm_tower import as_pretrained

ADAPTERS.extend([as_pretrained, as_siglip])

__all__ = ["as_pretrained"]
