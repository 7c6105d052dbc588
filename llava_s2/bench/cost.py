"""Parameters, multiply-accumulates, tiles and tokens of a tower, counted without weights (on torch's meta device)."""

import copy
import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, PreTrainedConfig

from llava_s2.s2 import S2VisionConfig
from llava_s2.s2.backbones import build_backbone, geometry, keep_blocks, last_features


@dataclass(frozen=True)
class Cost:
    """What one image costs.

    Attributes:
        parameters: of the backbone, without a head.
        linear: multiply-accumulates of its linear layers and convolutions.
        attention: of the two products in attention, queries by keys and weights by values.
        tiles: that the backbone runs on. tokens: that come out. width: channels of a token.
    """

    parameters: int
    linear: int
    attention: int
    tiles: int
    tokens: int
    width: int

    @property
    def macs(self) -> int:
        """All multiply-accumulates, which is what the paper calls FLOPs."""
        return self.linear + self.attention


def cost(backbone_config: PreTrainedConfig, scales: list[int], feature_layer: int = -1, **options: Any) -> Cost:
    """Counts a backbone on image scales, all images square.

    Args:
        backbone_config: of the backbone. If the first scale is not its own size, it is counted at that size, as where
            position embeddings are resized.
        feature_layer: hidden state that is read; blocks after it do not run. -1, the paper's, is all blocks.
        options: of ``S2VisionConfig``: ``split``, ``merge``.

    Raises:
        ValueError: scales that the backbone cannot be run on.
    """
    if scales and scales[0] != geometry(backbone_config).image_size:
        backbone_config = at_size(backbone_config, scales[0])
    config = S2VisionConfig(backbone_config=backbone_config, scales=scales, feature_layer=feature_layer, **options)
    blocks = config.num_blocks, config.num_used_blocks
    linear = attention = tiles = parameters = 0
    for tile, count in zip(config.tile_sizes, config.num_tiles, strict=True):
        parameters, tile_linear, tile_attention = _tile_cost(
            config.backbone_config.to_json_string(), *blocks, tile, config.backbone_image_size
        )
        tiles += count**2
        linear += count**2 * tile_linear
        attention += count**2 * tile_attention
    return Cost(parameters, linear, attention, tiles, config.num_image_tokens, config.hidden_size)


def at_size(backbone_config: PreTrainedConfig, side: int) -> PreTrainedConfig:
    """The config of the same backbone for images of another size."""
    config: Any = copy.deepcopy(backbone_config)
    if config.model_type != "timm_wrapper":
        config.image_size = side
        return config
    config.model_args = {**(config.model_args or {}), "img_size": side}
    try:
        geometry(config)
    except TypeError:  # a convolutional net, which is made for no size
        config.model_args = backbone_config.model_args
        config.image_size = side
    return config


@lru_cache(maxsize=256)
def _tile_cost(config_json: str, blocks: int, used: int, side: int, image_size: int) -> tuple[int, int, int]:
    """Parameters, and multiply-accumulates of linear layers and of attention, of one tile."""
    settings = json.loads(config_json)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one opaque operation, which no counter sees into
    try:
        with torch.device("meta"), torch.no_grad():
            model = build_backbone(AutoConfig.for_model(**settings)).eval()
            parameters = count_parameters(model)
            backbone = keep_blocks(model, blocks, used)
            images = torch.empty(1, getattr(model.config, "num_channels", 3), side, side, dtype=model.dtype)
            with FlopCounterMode(display=False) as counter:
                last_features(backbone, images, used, image_size)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    counts = {str(operation): number for operation, number in counter.get_flop_counts()["Global"].items()}
    attention = sum(number for name, number in counts.items() if "bmm" in name or "attention" in name)
    return parameters, (sum(counts.values()) - attention) // 2, attention // 2


def count_parameters(model: nn.Module) -> int:
    """Parameters of a model, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())
