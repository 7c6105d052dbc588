"""Configuration of the S2 vision tower: which backbone, at which image scales."""

import copy
from typing import Any, Literal

from transformers import AutoConfig, PreTrainedConfig

from .backbones import Geometry, features_per_side, geometry


class S2VisionConfig(PreTrainedConfig):
    """A vision backbone run on several image scales (arXiv:2403.13043, section 3.1).

    Takes keywords only, as transformers configs do.

    Args:
        backbone_config: config (or its dict, with `model_type`) of a transformers vision model that gives a grid of
            tokens or one feature map and has an `image_size`: CLIP, SigLIP, DINOv2 and v3, ViT, AIMv2, InternViT,
            ConvNeXt, Swin …; timm's models are `TimmWrapperConfig`, open_clip's `OpenClipVisionConfig`. The config of
            a larger model (CLIP, a whole VLM) stands for its vision part. Default: CLIP-L/14-336, the tower of
            LLaVA-1.5.
        scales: image sides in pixels, ascending. Whole multiples of the backbone's image size give tiles of that size.
            Others give equal tiles no larger than that, or than the first scale where that is larger; position
            embeddings are interpolated to them. Default: the backbone's image size alone.
        feature_layer: which of the backbone's hidden states, counted as transformers does: 0 is the
            embeddings, k the output of block (ConvNeXt: stage) k, -1 the last block's. No norm that follows
            the blocks is applied.
        max_split_size: largest tile side in pixels, if not the one described under `scales`.
        resize_output_to_idx: the scale whose feature grid the output has.
        merge: "concat" the scales along channels, or "add" them.
        split: False runs each scale as one whole image, with interpolated position embeddings.
        max_tiles_per_call: bound on the tiles of one call of the backbone. Default: as many as make 2,400 tokens (four
            tiles of CLIP-L/14-336) on a CPU; where the backbone is trained, as many as make 16,384; no bound otherwise.
        keep_aspect: tile an image on its own aspect ratio. The input is a square of `image_size`, one tile larger
            than the last scale, in which the image is padded with the mean colour (the processor's
            `image_aspect_ratio="keep"` or `"dynamic"`). True: in place of n x n tiles a scale has the grid nearest to
            the image's shape that has no more tiles and at most n + 1 on a side. "dynamic": Dynamic-S2 (NVILA), the
            last scale alone has a grid of the image's shape, of n squared to n squared + n tiles. Features are averaged
            to the same output tokens.

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
    keep_aspect: bool | Literal["dynamic"] = False

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

    def features_per_side(self, tile: int) -> int:
        """Features along one side of a tile of `tile` pixels."""
        return features_per_side(self.backbone_config, self.num_used_blocks, tile)

    @property
    def tile_sizes(self) -> list[int]:
        """Tile side in pixels of every scale."""
        return [side // count for side, count in zip(self.scales, self.num_tiles, strict=True)]

    @property
    def num_tiles(self) -> list[int]:
        """Tiles along one side of every scale."""
        limit = self.max_split_size or max(self.backbone_image_size, self.scales[0])
        return [-(-side // limit) if self.split else 1 for side in self.scales]

    @property
    def grid_size(self) -> int:
        """Output tokens along one side."""
        index = self.resize_output_to_idx
        return self.num_tiles[index] * self.features_per_side(self.tile_sizes[index])

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
        if any(small >= large for small, large in zip(self.scales, self.scales[1:], strict=False)):
            raise ValueError(f"scales must ascend, such as {fitting}, not {self.scales}")
        if self.max_split_size is not None and self.max_split_size < 1:
            raise ValueError(f"max_split_size must be positive, not {self.max_split_size}")
        for side, count in zip(self.scales, self.num_tiles, strict=True):
            if side % count:
                raise ValueError(
                    f"a scale of {side} pixels does not split into {count} x {count} equal tiles "
                    f"(max_split_size={self.max_split_size}, the backbone's image size is {base}): use multiples of "
                    f"{base}, such as {fitting}"
                )
        if not -self.num_blocks - 1 <= self.feature_layer <= self.num_blocks:
            raise ValueError(
                f"feature_layer {self.feature_layer} does not exist: the backbone ({kind}) has {self.num_blocks} "
                f"blocks, so 0 (embeddings) to {self.num_blocks}, or -1 (last) to {-self.num_blocks - 1}"
            )
        if not self.backbone_hidden_size:
            raise ValueError(f"feature_layer {self.feature_layer}: a {kind} backbone does not hand out its embeddings")
        if not -len(self.scales) <= self.resize_output_to_idx < len(self.scales):
            raise ValueError(
                f"resize_output_to_idx {self.resize_output_to_idx}, but there are {len(self.scales)} scales"
            )
        for tile in set(self.tile_sizes):
            try:
                self.features_per_side(tile)
            except ValueError as error:
                if tile == base:
                    raise
                dynamic = " or make the timm model with dynamic_img_size=True" if kind == "timm_wrapper" else ""
                raise ValueError(
                    f"scales {self.scales}: {error}; use multiples of {base}, such as {fitting}, and leave split and "
                    f"max_split_size unset{dynamic}"
                ) from error
        if self.image_size // self.patch_size != self.grid_size:
            raise ValueError(
                f"{self.grid_size} tokens a side do not lie evenly over {self.image_size} pixels: use scales such as "
                f"{fitting}, or another resize_output_to_idx"
            )
        if self.merge not in ("concat", "add"):
            raise ValueError(f"merge must be 'concat' or 'add', not {self.merge!r}")
        if self.max_tiles_per_call is not None and self.max_tiles_per_call < 1:
            raise ValueError(f"max_tiles_per_call must be at least 1, not {self.max_tiles_per_call}")
        if self.keep_aspect not in (True, False, "dynamic"):
            raise ValueError(f"keep_aspect must be True, False or 'dynamic', not {self.keep_aspect!r}")
        if self.keep_aspect and (
            not self.split or set(self.tile_sizes) != {base} or self.resize_output_to_idx or self.scales[0] != base
        ):
            raise ValueError(
                "keep_aspect cuts images into tiles of the backbone's image size and gives the first scale's grid: "
                f"use scales such as {fitting}, and leave split, max_split_size and resize_output_to_idx unset"
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
    found: Any = config
    while getattr(found, "vision_config", None) is not None:
        found = found.vision_config
    return copy.deepcopy(found)
