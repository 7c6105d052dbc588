"""S2 under transformers' own dense models: a backbone for ``AutoBackbone``, four strides of one multi-scale map."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoBackbone, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.modeling_outputs import BackboneOutput

from llava_s2.s2 import S2VisionConfig, S2VisionModel
from llava_s2.studies.study_towers import StudyTower, tower_maps

_STRIDES = (4, 8, 16, 32)


class S2BackboneConfig(BackboneConfigMixin, PreTrainedConfig):
    """A tower of one scale, run on several.

    Args:
        towers: configs (as dicts) of single-scale `S2VisionModel`s: one, for the tiles of every scale; or one for each
            scale, which is then run whole.
        scales: image sides in pixels. output: index of the scale whose grid the features have.
        merge: "concat" or "add". out_features: of "stage1" (stride 4) to "stage4" (stride 32).
    """

    model_type = "s2_backbone"

    towers: list[dict] | None = None
    scales: list[int] | None = None
    output: int = 0
    merge: str = "concat"
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.towers = self.towers or [S2VisionConfig().to_dict()]
        self.scales = self.scales or [S2VisionConfig(**self.towers[0]).backbone_image_size]
        self.stage_names = [f"stage{number}" for number in range(1, 5)]
        self.set_output_features_output_indices(
            kwargs.pop("out_features", None) or self.stage_names, kwargs.pop("out_indices", None)
        )
        super().__post_init__(**kwargs)


class S2Backbone(BackboneMixin, PreTrainedModel):
    """Feature maps of stride 4, 8, 16 and 32 from one multi-scale map, resized; the tower in it is frozen."""

    config_class = S2BackboneConfig
    config: S2BackboneConfig
    main_input_name = "pixel_values"
    has_attentions = False

    def __init__(self, config: S2BackboneConfig) -> None:
        super().__init__(config)
        self.towers = nn.ModuleList(S2VisionModel(S2VisionConfig(**tower)) for tower in config.towers or [])
        first: Any = self.towers[0]
        widths = first.config.hidden_size * (len(config.scales or []) if config.merge == "concat" else 1)
        self.num_features = [widths] * 4
        self.post_init()
        self.towers.requires_grad_(False)

    @classmethod
    def of(cls, towers: list[StudyTower], scales: list[int], output: int = 0, merge: str = "concat") -> "S2Backbone":
        """The backbone around loaded towers, whose weights are copied."""
        config = S2BackboneConfig(
            towers=[tower.s2.config.to_dict() for tower in towers], scales=list(scales), output=output, merge=merge
        )
        backbone = cls(config)
        for mine, tower in zip(backbone.towers, towers, strict=True):
            mine.load_state_dict(tower.s2.state_dict())
        return backbone

    def train(self, mode: bool = True) -> "S2Backbone":
        super().train(mode)
        self.towers.eval()
        return self

    def forward(self, pixel_values: Tensor, *args: Any, **kwargs: Any) -> BackboneOutput:
        """Feature maps of images (B, 3, H, H), normalised; every scale is a resize of the images as they are."""
        scales: list[int] = self.config.scales or []
        with torch.no_grad():
            if len(self.towers) == 1:
                maps = tower_maps(self.towers[0], pixel_values, scales, self.config.output, self.config.merge)
            else:
                maps = whole_image_maps(list(self.towers), pixel_values, scales, self.config.output, self.config.merge)
        sizes = {f"stage{n}": pixel_values.shape[-1] // stride for n, stride in enumerate(_STRIDES, 1)}
        feature_maps: Any = tuple(
            F.interpolate(maps, size=(sizes[name],) * 2, mode="bilinear", align_corners=False)
            for name in self.out_features
        )
        return BackboneOutput(feature_maps=feature_maps)


def whole_image_maps(towers: list[Any], images: Tensor, scales: list[int], output: int, merge: str) -> Tensor:
    """Multi-scale maps with every scale run as one image, by a tower of that size (the paper's table 12)."""
    maps = [tower_maps(tower, images, [side]) for tower, side in zip(towers, scales, strict=True)]
    size = maps[output].shape[-2:]
    maps = [scale if scale.shape[-2:] == size else F.interpolate(scale, size=size, mode="area") for scale in maps]
    return torch.cat(maps, dim=1) if merge == "concat" else torch.stack(maps).sum(0)


AutoConfig.register("s2_backbone", S2BackboneConfig, exist_ok=True)
AutoBackbone.register(S2BackboneConfig, S2Backbone, exist_ok=True)
