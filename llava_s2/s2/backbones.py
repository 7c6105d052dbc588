"""What S2 must know of a backbone, family by family: image size, hidden states, how one of them is had."""

import inspect
import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Geometry:
    """The hidden states of a backbone, numbered as transformers does.

    Attributes:
        image_size: side in pixels of the images that the backbone was trained on.
        widths: channels of each hidden state: the embeddings, then every block's (or stage's) output.
        strides: pixels that one feature of each hidden state covers, along one side.
        first: the first hidden state that can be had; not all families hand out the embeddings.
        in_stages: whether the map shrinks from block to block (ConvNeXt, Swin), as it does not in a plain ViT.
        other_sizes: whether tiles of another size than `image_size` can be run.
        rounds_up: whether the map of a side that is no multiple of a stride has a feature for the rest (a net that
            pads), or drops it.
    """

    image_size: int
    widths: tuple[int, ...]
    strides: tuple[int, ...]
    first: int = 0
    in_stages: bool = False
    other_sizes: bool = True
    rounds_up: bool = False

    @property
    def blocks(self) -> int:
        return len(self.widths) - 1

    def features(self, side: int, state: int) -> int:
        """How many features of hidden state number `state` lie along a side of `side` pixels."""
        stride = self.strides[state]
        return -(-side // stride) if self.rounds_up else side // stride


def geometry(config: PreTrainedConfig) -> Geometry:
    """The geometry of the backbone that a config describes.

    Raises:
        ValueError: a config without one square image size or without one feature grid; the message says what to use.
    """
    if config.model_type == "timm_wrapper":
        return _timm_geometry(
            config.architecture, json.dumps(config.model_args or {}), getattr(config, "image_size", None)
        )
    size = _square(getattr(config, "image_size", None))
    if size is None:
        raise ValueError(
            f"{config.model_type!r} has image_size {getattr(config, 'image_size', None)!r}: S2 needs a backbone whose "
            "config has one side in pixels as image_size"
        )
    # DINOv3's ConvNeXt says nothing of its stem, which is ConvNeXt's.
    patch = _square(getattr(config, "patch_size", 4 if config.model_type == "dinov3_convnext" else None))
    depths = getattr(config, "depths", None)
    if patch is not None and depths is not None:
        stages = len(depths)
        if (sizes := getattr(config, "hidden_sizes", None)) is not None:  # the map shrinks before a stage
            shrunk = [max(state - 1, 0) for state in range(stages + 1)]
            first = int(config.model_type == "dinov3_convnext")  # whose stem is part of its first stage
            return Geometry(size, (sizes[0], *sizes), tuple(patch * 2**n for n in shrunk), first, in_stages=True)
        if (width := getattr(config, "embed_dim", None)) is not None:  # Swin's shrinks after one, but for the last
            shrunk = [min(state, stages - 1) for state in range(stages + 1)]
            return Geometry(
                size,
                tuple(width * 2**n for n in shrunk),
                tuple(patch * 2**n for n in shrunk),
                in_stages=True,
                other_sizes=False,
                rounds_up=True,
            )
    width, blocks = (getattr(config, key, None) for key in ("hidden_size", "num_hidden_layers"))
    needed = {"patch_size": patch, "hidden_size": width, "num_hidden_layers": blocks}
    missing = [key for key, value in needed.items() if not value]
    if missing or depths is not None:
        raise ValueError(
            f"a {config.model_type!r} config has no {' and no '.join(missing or ['hidden_sizes'])}: use a backbone "
            "with one feature grid, such as clip_vision_model, siglip_vision_model, dinov2, vit, swin or convnext"
        )
    assert patch is not None and width is not None and blocks is not None
    open_clip = config.model_type == "open_clip_vision"
    return Geometry(
        size, (width,) * (blocks + 1), (patch,) * (blocks + 1), first=int(open_clip), other_sizes=not open_clip
    )


def default_feature_layer(config: PreTrainedConfig) -> int:
    """The hidden state that is read if none is asked for: LLaVA's -2 of a plain ViT, the last stage of other nets.

    A net in stages has another resolution one stage earlier, so that its -2 would be no neighbour of its last.
    """
    return -1 if geometry(config).in_stages else -2


def keep_blocks(backbone: PreTrainedModel, blocks: int, used: int) -> PreTrainedModel:
    """Cuts `backbone` in place to the first `used` of its `blocks`, and what follows them (final norm, pooler, head).

    The blocks of a transformers model are the first ModuleList as long as `blocks` (or as `used`, in a backbone that
    was cut before). What it registers after them works on the last block's output, which the features must not have
    gone through.

    Raises:
        ValueError: there is no such list.
    """
    if backbone.config.model_type == "timm_wrapper":
        cut: Any = backbone.timm_model
        cut.prune_intermediate_layers([used - 1], prune_norm=True, prune_head=True)
        return backbone
    lists = [(name, module) for name, module in backbone.named_modules() if isinstance(module, nn.ModuleList)]
    for length in (blocks, used):
        name, found = next(((name, found) for name, found in lists if len(found) == length), ("", None))
        if found is not None:
            break
    else:
        raise ValueError(f"{type(backbone).__name__} has no list of {blocks} blocks, as its config says")
    del found[used:]
    parent: nn.Module = backbone
    for part in name.split("."):
        children = list(parent._modules)
        for later in children[children.index(part) + 1 :]:
            module = parent._modules[later]
            if module is not None and any(True for _ in module.parameters()):
                parent.set_submodule(later, nn.Identity())
        parent = parent.get_submodule(part)
    if backbone.config.model_type == "vit_mae":  # a random three quarters of the patches are for pretraining
        pretraining: Any = backbone.embeddings
        backbone.config.mask_ratio = pretraining.config.mask_ratio = 0.0
    return backbone


def last_features(backbone: Any, tiles: Tensor, used: int, image_size: int, stride: int) -> Tensor:
    """The features of a backbone that `keep_blocks` cut.

    Args:
        tiles: (n, 3, t, t) in the backbone's dtype. used: blocks that it was cut to.
        image_size: side of the tiles it was trained on. stride: pixels a feature covers.

    Returns:
        Tokens (n, prefix + grid, D), row by row, or maps (n, D, h', w').
    """
    if backbone.config.model_type == "timm_wrapper":
        return backbone(
            tiles, output_hidden_states=[used - 1], do_pooling=False, norm=False, stop_early=True, output_fmt="NCHW"
        ).hidden_states[0]
    options: dict[str, Any] = {}
    side = tiles.shape[-1]
    if side != image_size and "interpolate_pos_encoding" in inspect.signature(backbone.forward).parameters:
        options["interpolate_pos_encoding"] = True
    if backbone.config.model_type == "vit_mae":  # which sorts its patches by this
        order = torch.arange((side // stride) ** 2, device=tiles.device, dtype=torch.float32)
        options["noise"] = order.expand(tiles.shape[0], -1)
    return backbone(tiles, **options).last_hidden_state


def _square(size: Any) -> int | None:
    """The side, given as it is or as a pair of equal sides; None for anything else."""
    if isinstance(size, (list, tuple)) and len(size) == 2 and size[0] == size[1]:
        size = size[0]
    return size if isinstance(size, int) else None


@lru_cache(maxsize=64)
def _timm_geometry(architecture: str, model_args: str, image_size: int | None) -> Geometry:
    try:
        import timm
    except ImportError as error:
        raise ImportError("a tower of timm needs timm: pip install timm") from error
    with torch.device("meta"):
        model: Any = timm.create_model(architecture, num_classes=0, **json.loads(model_args))
    if not hasattr(model, "forward_intermediates") or not hasattr(model, "prune_intermediate_layers"):
        raise ValueError(f"timm's {architecture} does not hand out its blocks' features (forward_intermediates)")
    info = [dict(model.feature_info[index]) for index in range(len(model.feature_info))]
    embedding = getattr(model, "patch_embed", None)
    trained = model.pretrained_cfg["input_size"]
    size = image_size or _square(getattr(embedding, "img_size", None)) or _square(trained[1:])
    if size is None:
        raise ValueError(f"timm's {architecture} takes {trained}: S2 needs square images")
    strides = [int(entry["reduction"]) for entry in info]
    rounds_up = False
    if size % strides[-1] and strides[0] != strides[-1]:  # nets in stages pad or not, each in its way
        with torch.device("meta"), torch.no_grad():
            images = torch.empty(1, trained[0], size, size)
            rounds_up = model.forward_intermediates(images, intermediates_only=True)[-1].shape[2] > size // strides[-1]
    return Geometry(
        size,
        tuple(int(entry["num_chs"]) for entry in [info[0], *info]),
        (strides[0], *strides),
        first=1,
        in_stages=strides[0] != strides[-1],
        other_sizes=not getattr(embedding, "strict_img_size", False),
        rounds_up=rounds_up,
    )
