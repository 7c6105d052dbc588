"""The S2 vision tower: a stock transformers backbone run on several image scales."""

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoModel, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import can_return_tuple

from .aspect import content_boxes, tile_grid
from .backbones import default_feature_layer, keep_blocks, last_features
from .configuration import S2VisionConfig
from .multiscale import multiscale_forward

ADAPTERS: list[Callable[[nn.Module], PreTrainedModel]] = []
"""Functions that make a transformers model of another library's; `llava_s2.towers` adds its own."""

# On a CPU, more tokens in one call fall out of its caches.
_CPU_TOKENS_A_CALL = 600


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
        self.backbone = _keep_blocks(AutoModel.from_config(config.backbone_config), config)
        self._share: Any = None  # how tiles are run by several processes or devices, see parallel.py
        self.cpu_tokens_a_call = _CPU_TOKENS_A_CALL
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
        vision_config = getattr(backbone.config, "vision_config", backbone.config)
        config_kwargs.setdefault("feature_layer", default_feature_layer(vision_config))
        config = S2VisionConfig(backbone_config=vision_config, scales=scales, **config_kwargs)
        # The class that AutoModel builds for this config, so that a saved tower loads again.
        stock: Any = MODEL_MAPPING.get(type(vision_config), ())
        found = next((module for module in backbone.modules() if isinstance(module, stock)), None)
        if found is None:
            raise ValueError(
                f"{type(backbone).__name__} neither is nor holds the vision model that AutoModel builds for "
                f"{vision_config.model_type!r}: load it with AutoModel"
            )
        with torch.device("meta"):
            model = cls(config)
        model.backbone = _keep_blocks(cast(PreTrainedModel, found), config)
        config.dtype = model.backbone.dtype
        return model.train(backbone.training)

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    @can_return_tuple
    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Multi-scale features of square images, or of the pictures in padded squares (`config.keep_aspect`).

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
        side = self.config.image_size
        if tuple(pixel_values.shape[1:]) != (self.config.num_channels, side, side):
            raise ValueError(
                f"pixel_values must be (B, {self.config.num_channels}, {side}, {side}), the largest scale, "
                f"not {tuple(pixel_values.shape)}: the processor's image size must be {side}"
            )
        # A frozen tower keeps no activations, whatever hooks put on its embeddings
        # (enable_input_require_grads).
        learns = pixel_values.requires_grad or any(p.requires_grad for p in self.backbone.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and learns):
            if self.config.keep_aspect:
                if self._is_sharded:
                    raise ValueError(
                        "keep_aspect calls the backbone as often as the pictures need, for which ZeRO-3 and FSDP wait "
                        "in vain: train with DDP or ZeRO-2, or with pictures padded or stretched"
                    )
                features = torch.cat(
                    [self._multiscale(picture, sizes) for picture, sizes in self._pictures(pixel_values)]
                )
            else:
                features = self._multiscale(pixel_values, list(self.config.scales))
        return BaseModelOutputWithPooling(last_hidden_state=features, hidden_states=(features,))

    def _multiscale(self, images: Tensor, sizes: list[Any]) -> Tensor:
        base = self.config.backbone_image_size
        return multiscale_forward(
            self._patch_features,
            images,
            img_sizes=sizes,
            max_split_size=(base, base) if self.config.keep_aspect else self.config.max_split_size or base,
            resize_output_to_idx=self.config.resize_output_to_idx,
            merge=self.config.merge,
            split=self.config.split,
            max_tiles_per_call=self._tiles_per_call(images.device),
        )

    def _pictures(self, pixel_values: Tensor) -> Iterator[tuple[Tensor, list[tuple[int, int]]]]:
        """The pictures (1, 3, h, w) inside their padding, and the height and width of each scale."""
        base = self.config.backbone_image_size
        for image, (top, bottom, left, right) in zip(pixel_values, content_boxes(pixel_values), strict=True):
            grids = [tile_grid(bottom - top, right - left, most) for most in self.config.num_tiles]
            yield image[None, :, top:bottom, left:right], [(rows * base, columns * base) for rows, columns in grids]

    def _tiles_per_call(self, device: torch.device) -> int | None:
        workers = 1 if self._share is None else self._share.workers
        if self.config.max_tiles_per_call is not None:
            return self.config.max_tiles_per_call * workers
        if device.type != "cpu" or self._is_sharded:
            return None
        tokens = self.config.features_a_side(max(self.config.tile_sizes)) ** 2
        return max(self.cpu_tokens_a_call // tokens, 1) * workers

    @property
    def _is_sharded(self) -> bool:
        """Whether ZeRO-3 or FSDP gathers weights at each call: all processes must then call as often as each other,
        whatever pictures they have."""
        return any(
            hasattr(weight, "ds_id") or hasattr(weight, "placements") or hasattr(weight, "_is_flat_param")
            for weight in self.backbone.parameters()
        )

    def _patch_features(self, tiles: Tensor) -> Tensor:
        """Features (n, grid * grid, D) of square tiles (n, 3, t, t), without prefix tokens."""
        if self._share is None:
            return self._run_backbone(self.backbone, tiles)
        return self._share.run(self._run_backbone, self.backbone, tiles)

    def _run_backbone(self, backbone: Any, tiles: Tensor) -> Tensor:
        side = tiles.shape[-1]
        features = last_features(
            backbone,
            tiles.to(self.backbone.dtype),
            self.config.num_used_blocks,
            self.config.backbone_image_size,
            self.config.backbone_stride,
        )
        if backbone._compiled_call_impl is not None:
            features = features.clone()  # a CUDA graph's next call writes into its output
        is_map = features.dim() == 4
        if is_map:
            features = features.flatten(2).transpose(1, 2)
        tokens, grid = features.shape[1], self.config.features_a_side(side) ** 2
        if tokens < grid or (is_map and tokens > grid):
            raise ValueError(
                f"the backbone ({self.config.backbone_config.model_type}) gave {tokens} tokens for a tile of {side} "
                f"pixels; one for every {self.config.backbone_stride} pixels makes {grid}"
            )
        return features[:, tokens - grid :]


def _as_pretrained(model: nn.Module) -> PreTrainedModel:
    if not ADAPTERS:
        raise ValueError(
            f"{type(model).__name__} is no model of transformers; import llava_s2.towers for other libraries'"
        )
    return ADAPTERS[0](model)


def _keep_blocks(backbone: PreTrainedModel, config: S2VisionConfig) -> PreTrainedModel:
    return keep_blocks(backbone, config.num_blocks, config.num_used_blocks)
