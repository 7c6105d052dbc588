"""The S2 vision tower: a stock transformers backbone run on several image scales."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import can_return_tuple

from .aspect import content_boxes, dynamic_grids, kept_grids
from .backbones import (
    TESTED,
    build_backbone,
    check_cut_features,
    default_feature_layer,
    keep_blocks,
    last_features,
    model_class,
)
from .configuration import S2VisionConfig
from .multiscale import Scale, merge_scales, multiscale_forward, run_scales

ADAPTERS: list[Callable[[nn.Module], PreTrainedModel | None]] = []
"""Functions that make a transformers model of another library's; `llava_s2.towers` adds its own."""

# Bounds on the tokens of one call: four tiles of CLIP-L/14-336 on a CPU, whose caches hold little more, and what a
# backbone that is trained keeps for its backward pass anywhere.
_CPU_TOKENS_PER_CALL = 2400
_TRAINING_TOKENS_PER_CALL = 16384


class S2VisionModel(PreTrainedModel):
    """Multi-scale patch features of any transformers vision backbone (arXiv:2403.13043, section 3.1).

    `backbone` is the stock model without the blocks that come after `config.feature_layer` and without what
    follows its blocks (final norm, pooler, head). Its prefix tokens (CLS, registers) are dropped.

    Example:
        >>> tower = S2VisionModel.wrap(CLIPVisionModel.from_pretrained(path), scales=[336, 672, 1008])
        >>> tower(torch.rand(1, 3, 1008, 1008)).last_hidden_state.shape
        torch.Size([1, 576, 3072])
    """

    config_class = S2VisionConfig
    config: S2VisionConfig
    main_input_name = "pixel_values"
    input_modalities = "image"
    supports_gradient_checkpointing = True
    # What of this a backbone lacks, it says itself when it is built.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: S2VisionConfig) -> None:
        super().__init__(config)
        self.backbone = _keep_blocks(build_backbone(config.backbone_config), config)
        self._tile_parallel: Any = None  # see parallel.py
        # Read off the config once: it asks the backbone's class, which no compiled or exported forward should.
        self._base, self._used = config.backbone_image_size, config.num_used_blocks
        self._side, self._channels = config.image_size, config.num_channels
        self._output = (config.num_image_tokens, config.hidden_size)
        self._tiles_per_side = config.num_tiles
        self._tokens = {tile: config.features_per_side(tile) ** 2 for tile in config.tile_sizes}
        self.post_init()

    @classmethod
    def wrap(cls, backbone: nn.Module, scales: list[int], **config_kwargs: Any) -> "S2VisionModel":
        """The tower around a loaded backbone, whose weights it shares.

        Args:
            backbone: a vision model of transformers, open_clip or timm, or a two-tower model (CLIPModel, open_clip's
                CLIP) whose vision part is taken. It is cut in place to the blocks that the features need.
            scales: image sides in pixels, see `S2VisionConfig`; `config_kwargs` are its other arguments.
                `feature_layer` is -2 for plain ViTs and the last stage of nets in stages if it is not given.

        Raises:
            ValueError: scales that the backbone cannot be run on, or a model that would not load again.

        Example:
            >>> tower = S2VisionModel.wrap(timm.create_model("vit_base_patch16_224"), scales=[224, 448])
        """
        if not isinstance(backbone, PreTrainedModel):
            backbone = _as_pretrained(backbone)
        for adapt in ADAPTERS:
            backbone = adapt(backbone) or backbone
        vision_config = backbone.config
        while getattr(vision_config, "vision_config", None) is not None:
            vision_config = vision_config.vision_config
        config_kwargs.setdefault("feature_layer", default_feature_layer(vision_config))
        config = S2VisionConfig(backbone_config=vision_config, scales=scales, **config_kwargs)
        # The class that AutoModel builds for this config, so that a saved tower loads again.
        stock = model_class(vision_config)
        found = next((module for module in backbone.modules() if isinstance(module, stock)), None)
        if found is None:
            raise ValueError(
                f"{type(backbone).__name__} neither is nor holds the vision model that AutoModel builds for "
                f"{vision_config.model_type!r}: load it with AutoModel"
            )
        if vision_config.model_type not in TESTED and not next(found.parameters()).is_meta:
            check_cut_features(cast(PreTrainedModel, found), vision_config, config.num_used_blocks)
        with torch.device("meta"):
            model = cls(config)
        model.backbone = _keep_blocks(cast(PreTrainedModel, found), config)
        config.dtype = model.backbone.dtype
        return model.train(backbone.training)

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    @can_return_tuple
    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Multi-scale features of square images, or of the images in padded squares (`config.keep_aspect`).

        Args:
            pixel_values: float (B, 3, S, S) with S = `config.image_size`, normalised for the backbone.
            kwargs: accepted for callers that ask for hidden states by flag or by index; there is one,
                whatever is asked for.

        Returns:
            `last_hidden_state` (B, config.num_image_tokens, config.hidden_size), row by row, in the
            backbone's dtype; `hidden_states` is a tuple of this one tensor, which is what LLaVA with
            `vision_feature_layer=-1` and `vision_feature_select_strategy="full"` takes.

        Raises:
            ValueError: images of another size.
        """
        side = self._side
        if tuple(pixel_values.shape[1:]) != (self._channels, side, side):
            raise ValueError(
                f"pixel_values must be (B, {self._channels}, {side}, {side}), the largest scale, "
                f"not {tuple(pixel_values.shape)}: the processor's image size must be {side}"
            )
        # A frozen tower keeps no activations, whatever hooks put on its embeddings
        # (enable_input_require_grads).
        learns = pixel_values.requires_grad or any(p.requires_grad for p in self.backbone.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and learns):
            if not torch.compiler.is_compiling() and not pixel_values.shape[0]:
                features = pixel_values.new_empty(0, *self._output, dtype=self.backbone.dtype)
            elif self.config.keep_aspect:
                features = self._kept_aspects(pixel_values)
            else:
                features = multiscale_forward(
                    self._patch_features,
                    pixel_values,
                    img_sizes=list(self.config.scales),
                    max_split_size=self.config.max_split_size or max(self._base, self.config.scales[0]),
                    resize_output_to_idx=self.config.resize_output_to_idx,
                    merge=self.config.merge,
                    split=self.config.split,
                    max_tiles_per_call=self._tiles_per_call(pixel_values.device),
                )
        return BaseModelOutputWithPooling(last_hidden_state=features, hidden_states=(features,))

    def _kept_aspects(self, pixel_values: Tensor) -> Tensor:
        """Features of the images inside their padding, each on grids of its own shape; their tiles share calls."""
        if self._is_sharded:
            raise ValueError(
                "keep_aspect calls the backbone as often as the images need, for which ZeRO-3 and FSDP wait "
                "in vain: train with DDP or ZeRO-2, or with images padded or stretched"
            )
        grids_of = dynamic_grids if self.config.keep_aspect == "dynamic" else kept_grids
        parts = []
        for image, (top, bottom, left, right) in zip(pixel_values, content_boxes(pixel_values), strict=True):
            content = image[None, :, top:bottom, left:right]
            for rows, columns in grids_of(bottom - top, right - left, self._tiles_per_side):
                size = (rows * self._base, columns * self._base)
                parts.append((content, Scale(size, size, rows, columns)))
        maps, _ = run_scales(
            self._patch_features, parts, 0, max_tiles_per_call=self._tiles_per_call(pixel_values.device)
        )
        scales = len(self._tiles_per_side)
        merged = [merge_scales(maps[at : at + scales], self.config.merge) for at in range(0, len(maps), scales)]
        return torch.cat(merged).flatten(1, 2)

    def _tiles_per_call(self, device: torch.device) -> int | None:
        workers = 1 if self._tile_parallel is None else self._tile_parallel.workers
        if self.config.max_tiles_per_call is not None:
            return self.config.max_tiles_per_call * workers
        # One call of all tiles: for the compiler, which would unroll a loop, and where weights are gathered at each
        # call, of which all processes must make as many.
        if torch.compiler.is_compiling() or self._is_sharded:
            return None
        tokens = _CPU_TOKENS_PER_CALL if device.type == "cpu" else _TRAINING_TOKENS_PER_CALL
        if device.type != "cpu" and not torch.is_grad_enabled():
            return None
        return max(tokens // max(self._tokens.values()), 1) * workers

    @property
    def _is_sharded(self) -> bool:
        """Whether ZeRO-3 or FSDP gathers weights at each call: all processes must then call as often as each other,
        whatever images they have."""
        return any(
            hasattr(weight, "ds_id") or hasattr(weight, "placements") or hasattr(weight, "_is_flat_param")
            for weight in self.backbone.parameters()
        )

    def _patch_features(self, tiles: Tensor) -> Tensor:
        """Features (n, grid * grid, D) of square tiles (n, 3, t, t), without prefix tokens."""
        if self._tile_parallel is None:
            return self._run_backbone(self.backbone, tiles)
        return self._tile_parallel.run(self._run_backbone, self.backbone, tiles)

    def _run_backbone(self, backbone: Any, tiles: Tensor) -> Tensor:
        features = last_features(backbone, tiles.to(self.backbone.dtype), self._used, self._base)
        if backbone._compiled_call_impl is not None:
            features = features.clone()  # a CUDA graph's next call writes into its output
        if features.dim() == 4:
            features = features.flatten(2).transpose(1, 2)
        tokens = self._tokens[tiles.shape[-1]]
        if features.shape[1] < tokens:
            raise ValueError(
                f"the backbone ({self.config.backbone_config.model_type}) gave {features.shape[1]} tokens for a tile "
                f"of {tiles.shape[-1]} pixels, not the {tokens} that its class gives without weights"
            )
        return features[:, features.shape[1] - tokens :]


def _as_pretrained(model: nn.Module) -> PreTrainedModel:
    for adapt in ADAPTERS:
        if (found := adapt(model)) is not None:
            return found
    raise ValueError(
        f"{type(model).__name__} is no model of transformers, or of open_clip or timm (which llava_s2.towers knows); "
        "multiscale_forward takes any function of images"
    )


def _keep_blocks(backbone: PreTrainedModel, config: S2VisionConfig) -> PreTrainedModel:
    return keep_blocks(backbone, config.num_blocks, config.num_used_blocks)
