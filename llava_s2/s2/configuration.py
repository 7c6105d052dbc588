"""Configuration of the S2 vision tower: which backbone, at which image scales."""

import copy
from typing import Any, Literal

from transformers import AutoConfig, PreTrainedConfig

from .backbones import Geometry, geometry


class S2VisionConfig(PreTrainedConfig):
    """A vision backbone run on several image scales (arXiv:2403.13043, section 3.1).

    Takes keywords only, as transformers configs do.

    Args:
        backbone_config: config (or its dict, with `model_type`) of any transformers vision model that gives a
            grid of tokens or one feature map: CLIP, SigLIP, DINOv2 (with or without registers), DINOv3, ViT,
            ViT-MAE, ConvNeXt, Swin; timm's models are `TimmWrapperConfig`, open_clip's `OpenClipVisionConfig`. The
            config of a whole CLIP or SigLIP stands for its vision part. Default: CLIP-L/14-336, the tower of
            LLaVA-1.5.
        scales: image sides in pixels, ascending; the first is the backbone's own image size and the others
            are whole multiples of it. Default: that first scale alone.
        feature_layer: which of the backbone's hidden states, counted as transformers does: 0 is the
            embeddings, k the output of block (ConvNeXt: stage) k, -1 the last block's. No norm that follows
            the blocks is applied.
        max_split_size: largest tile side in pixels. Default: the backbone's image size, so that all tiles are
            what it was trained on. Other tile sizes interpolate position embeddings.
        resize_output_to_idx: the scale whose feature grid the output has.
        merge: "concat" the scales along channels, or "add" them.
        split: False runs each scale as one whole image, with interpolated position embeddings.
        max_tiles_per_call: bound on the tiles of one call of the backbone. Default: as many as make 600 tokens on a
            CPU (one tile of CLIP-L/14-336), where more are slower and take memory; no bound on other devices.
        keep_aspect: tile a picture on its own aspect ratio. The input is a square of `image_size`, one tile larger
            than the last scale, in which the picture is padded with the mean colour (the processor's
            `image_aspect_ratio="keep"`). In place of n x n tiles a scale has the grid nearest to the picture's shape
            that has no more tiles and at most n + 1 a side; its features are averaged to the same output tokens.

    Attributes:
        hidden_size: channels of the output. image_size: side in pixels of the input image (the last scale).
        patch_size: pixels of the input image that one output token covers, along one side.
        num_image_tokens: tokens in the output. num_channels: colour channels of the input.

    Raises:
        ValueError: scales that the backbone cannot be run on; the message names ones that it can.

    Example:
        >>> S2VisionConfig(backbone_config=clip.config, scales=[336, 672, 1008])  # hidden_size 3072
    """

    model_type = "s2_vision"
    sub_configs = {"backbone_config": AutoConfig}  # noqa: RUF012 - overrides a class attribute of the base

    # The types are what the attributes are after construction; a dict and a tuple are taken too.
    backbone_config: PreTrainedConfig = None  # type: ignore[assignment]
    scales: list[int] = None  # type: ignore[assignment]
    feature_layer: int = -2
    max_split_size: int | None = None
    resize_output_to_idx: int = 0
    merge: Literal["concat", "add"] = "concat"
    split: bool = True
    max_tiles_per_call: int | None = None
    keep_aspect: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("reuse_flat_tiles", None)  # of version 0.1: it changed no feature
        if kwargs.pop("min_detail", None) is not None:
            raise ValueError("min_detail is no more: make the tower without it, so that all its tiles are run")
        self.backbone_config = _vision_config(self.backbone_config)
        if self.scales is None:
            self.scales = [self.backbone_image_size]
        self.scales = list(self.scales)
        super().__post_init__(**kwargs)
        self._check()

    @property
    def geometry(self) -> Geometry:
        """The backbone's hidden states: how many, how wide, how fine."""
        return geometry(self.backbone_config)

    @property
    def options(self) -> dict[str, Any]:
        """All arguments but the backbone and the scales, as `S2VisionModel.wrap` takes them."""
        names = S2VisionConfig.__annotations__
        return {name: getattr(self, name) for name in names if name not in ("backbone_config", "scales")}

    @property
    def backbone_image_size(self) -> int:
        """Side in pixels of the images the backbone was trained on."""
        return self.geometry.image_size

    @property
    def num_blocks(self) -> int:
        """Blocks (ConvNeXt, Swin: stages) of the whole backbone."""
        return self.geometry.blocks

    @property
    def num_used_blocks(self) -> int:
        """Blocks that `feature_layer` needs."""
        return self.feature_layer % (self.num_blocks + 1)

    @property
    def backbone_hidden_size(self) -> int:
        """Channels of one scale's features."""
        return self.geometry.widths[self.num_used_blocks]

    @property
    def backbone_stride(self) -> int:
        """Pixels of a tile that one of its features covers, along one side."""
        return self.geometry.strides[self.num_used_blocks]

    def features_a_side(self, tile: int) -> int:
        """Features along one side of a tile of `tile` pixels."""
        return self.geometry.features(tile, self.num_used_blocks)

    @property
    def tile_sizes(self) -> list[int]:
        """Tile side in pixels of every scale."""
        return [side // count for side, count in zip(self.scales, self.num_tiles, strict=True)]

    @property
    def num_tiles(self) -> list[int]:
        """Tiles along one side of every scale."""
        limit = self.max_split_size or self.backbone_image_size
        return [-(-side // limit) if self.split else 1 for side in self.scales]

    @property
    def grid_size(self) -> int:
        """Output tokens along one side."""
        index = self.resize_output_to_idx
        return self.num_tiles[index] * self.features_a_side(self.tile_sizes[index])

    @property
    def hidden_size(self) -> int:
        return self.backbone_hidden_size * (len(self.scales) if self.merge == "concat" else 1)

    @property
    def image_size(self) -> int:
        return self.scales[-1] + (self.backbone_image_size if self.keep_aspect else 0)

    @property
    def patch_size(self) -> int:
        return self.image_size // self.grid_size

    @property
    def num_image_tokens(self) -> int:
        return self.grid_size**2

    @property
    def num_channels(self) -> int:
        return getattr(self.backbone_config, "num_channels", 3)

    def _check(self) -> None:
        """Raise ValueError, with the way out, for what cannot be run."""
        kind = self.backbone_config.model_type
        base = self.backbone_image_size
        fitting = [base * factor for factor in (1, 2, 3)]
        if not self.scales or not all(type(side) is int for side in self.scales):
            raise ValueError(f"scales must be whole numbers of pixels, such as {fitting}, not {self.scales}")
        if self.scales[0] != base:
            raise ValueError(
                f"the first scale is {self.scales[0]}, but the backbone ({kind}) was trained on {base} "
                f"pixels: use scales such as {fitting}"
            )
        if any(small >= large for small, large in zip(self.scales, self.scales[1:], strict=False)):
            raise ValueError(f"scales must ascend, such as {fitting}, not {self.scales}")
        if self.max_split_size is not None and self.max_split_size < 1:
            raise ValueError(f"max_split_size must be positive, not {self.max_split_size}")
        if self.max_split_size is None and self.split and any(side % base for side in self.scales):
            raise ValueError(
                f"scales {self.scales} do not all split into tiles of {base} pixels, the backbone's ({kind}) "
                f"image size: use whole multiples of {base}, such as {fitting}"
            )
        for side, count in zip(self.scales, self.num_tiles, strict=True):
            if side % count or side // count < self.backbone_stride:
                raise ValueError(
                    f"a scale of {side} pixels does not split into {count} equal tiles a side of at least "
                    f"{self.backbone_stride} pixels (max_split_size={self.max_split_size}): leave "
                    "max_split_size unset"
                )
        if not self.geometry.other_sizes and set(self.tile_sizes) != {base}:
            raise ValueError(
                f"the backbone ({kind}) runs on tiles of {base} pixels alone, not of {self.tile_sizes}: leave split "
                "and max_split_size unset (a timm model can be made with dynamic_img_size=True)"
            )
        if not -self.num_blocks - 1 <= self.feature_layer <= self.num_blocks:
            raise ValueError(
                f"feature_layer {self.feature_layer} does not exist: the backbone ({kind}) has {self.num_blocks} "
                f"blocks, so 0 (embeddings) to {self.num_blocks}, or -1 (last) to {-self.num_blocks - 1}"
            )
        if self.num_used_blocks < self.geometry.first:
            raise ValueError(f"feature_layer {self.feature_layer}: a {kind} backbone does not hand out its embeddings")
        if not -len(self.scales) <= self.resize_output_to_idx < len(self.scales):
            raise ValueError(
                f"resize_output_to_idx {self.resize_output_to_idx}, but there are {len(self.scales)} scales"
            )
        if self.merge not in ("concat", "add"):
            raise ValueError(f"merge must be 'concat' or 'add', not {self.merge!r}")
        if self.max_tiles_per_call is not None and self.max_tiles_per_call < 1:
            raise ValueError(f"max_tiles_per_call must be at least 1, not {self.max_tiles_per_call}")
        if self.keep_aspect and (not self.split or set(self.tile_sizes) != {base} or self.resize_output_to_idx):
            raise ValueError(
                "keep_aspect cuts pictures into tiles of the backbone's image size and gives the first scale's grid: "
                "leave split, max_split_size and resize_output_to_idx unset"
            )


def _vision_config(config: dict | PreTrainedConfig | None) -> PreTrainedConfig:
    """The vision model's own config: built from a dict, taken out of a two-tower config, copied."""
    if config is None:
        config = {
            "model_type": "clip_vision_model",
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": 336,
            "patch_size": 14,
            "projection_dim": 768,
        }
    if isinstance(config, dict):
        if "model_type" not in config:
            raise ValueError("backbone_config needs a model_type, such as 'clip_vision_model'")
        config = AutoConfig.for_model(**config)
    return copy.deepcopy(getattr(config, "vision_config", config))
