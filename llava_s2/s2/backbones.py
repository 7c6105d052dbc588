"""What S2 must know of a backbone: read off one forward pass without weights, on torch's meta device."""

import inspect
import json
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel

# Whose features through a cut backbone the tests hold against the stock model's; others are tried when wrapped.
TESTED = {
    "aimv2_vision_model", "blip_2_vision_model", "clip_vision_model", "convnext", "dinov2", "dinov2_with_registers",
    "dinov3_convnext", "dinov3_vit", "internvl_vision", "metaclip_2_vision_model", "open_clip_vision",
    "siglip_vision_model", "swin", "timm_wrapper", "vit", "vit_mae",
}  # fmt: skip
# Which change themselves with the image's size, or are built for one.
_ONE_SIZE = {"swin", "swinv2", "donut-swin", "open_clip_vision"}
_USE = "use a backbone with one feature grid, such as clip_vision_model, siglip_vision_model, dinov2, vit or convnext"


@dataclass(frozen=True)
class Geometry:
    """The hidden states of a backbone, numbered as transformers does: the embeddings, then each block's output.

    Attributes:
        image_size: side in pixels of the images that the backbone was trained on.
        widths: channels of each hidden state; 0 for one that is not handed out.
        grids: features of each hidden state along one side of an image.
        prefix: tokens (CLS, registers) before the grid.
    """

    image_size: int
    widths: tuple[int, ...]
    grids: tuple[int, ...]
    prefix: int = 0

    @property
    def blocks(self) -> int:
        return len(self.widths) - 1

    @property
    def in_stages(self) -> bool:
        """Whether the map shrinks from block to block (ConvNeXt, Swin), as it does not in a plain ViT."""
        return len({grid for grid in self.grids if grid}) > 1


def geometry(config: PreTrainedConfig) -> Geometry:
    """The geometry of the backbone that a config describes.

    Raises:
        ValueError: a config without one square image size, or of a model that does not give one feature grid; the
            message says what to use.
    """
    return _geometry(_settings(config))


def default_feature_layer(config: PreTrainedConfig) -> int:
    """The hidden state that is read if none is asked for: LLaVA's -2 of a plain ViT, the last stage of other nets.

    A net in stages has another resolution one stage earlier, so that its -2 would be no neighbour of its last.
    """
    return -1 if geometry(config).in_stages else -2


def features_per_side(config: PreTrainedConfig, blocks_used: int, tile: int) -> int:
    """Features along one side of a tile of `tile` pixels, of the backbone cut to its first blocks.

    Raises:
        ValueError: the backbone cannot be cut so, or does not run on such tiles.
    """
    return _features_per_side(_settings(config), blocks_used, tile)


def model_class(config: PreTrainedConfig) -> Any:
    """The class that a backbone is built by: AutoModel's, or the one named as the config where AutoModel has none.

    Raises:
        ValueError: transformers has no such class.
    """
    found: Any = MODEL_MAPPING.get(type(config), None) or getattr(
        transformers, type(config).__name__.removesuffix("Config") + "Model", None
    )
    if found is None:
        raise ValueError(f"transformers has no vision model for a {config.model_type!r} config: {_USE}")
    return found[0] if isinstance(found, tuple) else found


def build_backbone(config: PreTrainedConfig) -> PreTrainedModel:
    """A backbone with fresh weights, on the current default device."""
    return model_class(config)._from_config(config)


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
    if getattr(backbone.config, "use_head", False):  # AIMv2's pooling, a head that has been taken away
        vision: Any = backbone
        vision.use_head = False
    if backbone.config.model_type == "vit_mae":  # a random three quarters of the patches are for pretraining
        pretraining: Any = backbone.embeddings
        backbone.config.mask_ratio = pretraining.config.mask_ratio = 0.0
    return backbone


def last_features(backbone: Any, tiles: Tensor, used: int, image_size: int) -> Tensor:
    """The features of a backbone that `keep_blocks` cut.

    Args:
        tiles: (n, 3, t, t) in the backbone's dtype. used: blocks that it was cut to.
        image_size: side of the tiles it was trained on.

    Returns:
        Tokens (n, prefix + grid, D), row by row, or maps (n, D, h', w').
    """
    if backbone.config.model_type == "timm_wrapper":
        return backbone(
            tiles, output_hidden_states=[used - 1], do_pooling=False, norm=False, stop_early=True, output_fmt="NCHW"
        ).hidden_states[0]
    return backbone(tiles, **_options(backbone, tiles, image_size)).last_hidden_state


def check_cut_features(whole: PreTrainedModel, config: PreTrainedConfig, used: int) -> None:
    """Runs one image through a backbone and through its copy cut to `used` blocks: they must agree.

    Raises:
        ValueError: they do not, so that this family cannot be cut as `keep_blocks` does it.
    """
    import copy

    parameter = next(whole.parameters())
    side = geometry(config).image_size
    image = torch.randn(1, getattr(config, "num_channels", 3), side, side).to(parameter)
    cut = keep_blocks(copy.deepcopy(whole), geometry(config).blocks, used).eval()
    was_training = whole.training
    with torch.no_grad():
        expected: Any = _hidden_states(whole.eval(), image, side)[used]
        found = last_features(cut, image, used, side)
    whole.train(was_training)
    if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-2, atol=1e-3):
        raise ValueError(f"a {config.model_type!r} backbone cut to {used} blocks gives other features: {_USE}")


def _options(backbone: Any, images: Tensor, image_size: int) -> dict[str, Any]:
    options: dict[str, Any] = {}
    side = images.shape[-1]
    if side != image_size and "interpolate_pos_encoding" in inspect.signature(backbone.forward).parameters:
        options["interpolate_pos_encoding"] = True
    if backbone.config.model_type == "vit_mae":  # which sorts its patches by this
        order = torch.arange((side // backbone.config.patch_size) ** 2, device=images.device, dtype=torch.float32)
        options["noise"] = order.expand(images.shape[0], -1)
    return options


def _hidden_states(model: Any, images: Tensor, image_size: int) -> list[Tensor | None]:
    """All hidden states; None for one that is not handed out."""
    if model.config.model_type == "timm_wrapper":
        states = model.timm_model.forward_intermediates(images, norm=False, intermediates_only=True, output_fmt="NCHW")
        return [None, *states]
    options = _options(model, images, image_size)
    states = model(images, output_hidden_states=True, **options).hidden_states or ()
    # Nets whose stem is part of their first stage give the image itself as the first.
    return [None if state is None or state.shape[1:] == images.shape[1:] else state for state in states]


def _settings(config: PreTrainedConfig) -> str:
    if config.model_type != "timm_wrapper":
        return config.to_json_string(use_diff=False)
    kept = {key: getattr(config, key, None) for key in ("architecture", "model_args", "image_size")}
    return json.dumps({"model_type": "timm_wrapper", **kept})


def _meta_model(settings: str) -> tuple[Any, PreTrainedConfig, int]:
    """A whole backbone without weights, its config, and its image size."""
    config = AutoConfig.for_model(**json.loads(settings))
    kind = config.model_type
    with torch.device("meta"):  # by its constructor: transformers' others would build shards where ZeRO-3 is on
        model: Any = model_class(config)(config).eval()
    size = _square(getattr(config, "image_size", None))
    if kind == "timm_wrapper":
        inner = model.timm_model
        if not hasattr(inner, "forward_intermediates") or not hasattr(inner, "prune_intermediate_layers"):
            raise ValueError(f"timm's {config.architecture} does not hand out its blocks' features")
        embedding = getattr(inner, "patch_embed", None)
        size = size or _square(getattr(embedding, "img_size", None)) or _square(inner.pretrained_cfg["input_size"][1:])
        kind = f"timm's {config.architecture}"
    if size is None:
        raise ValueError(
            f"{kind!r} has image_size {getattr(config, 'image_size', None)!r}: S2 needs a backbone whose config has "
            "one side in pixels as image_size, such as google/siglip2-so400m-patch14-384 or "
            "openai/clip-vit-large-patch14-336"
        )
    return model, config, size


@torch.no_grad()
def _run_meta(kind: str, what: str, run: Any) -> Any:
    try:
        return run()
    except Exception as error:  # whatever a model meets that is not made for this
        message = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"a {kind!r} backbone {what} ({message})") from error


@lru_cache(maxsize=256)
def _geometry(settings: str) -> Geometry:
    kind = json.loads(settings)["model_type"]
    try:
        model, config, size = _meta_model(settings)
    except ImportError as error:
        library = "timm" if kind == "timm_wrapper" else kind.removesuffix("_vision")
        raise ImportError(f"a tower of {library} needs it: pip install 'llava-s2[openclip]'") from error
    if kind == "vit_mae":
        model.embeddings.config.mask_ratio = 0.0
    images = torch.empty(2, _channels(config, model), size, size, dtype=model.dtype, device="meta")
    states = _run_meta(
        kind, "does not give its hidden states for an image", lambda: _hidden_states(model, images, size)
    )
    known = [state for state in states if state is not None]
    if not known:
        raise ValueError(f"a {kind!r} backbone does not give its hidden states: {_USE}")
    if any(len(state) != len(images) for state in known):
        raise ValueError(f"a {kind!r} backbone makes one sequence of several images, where S2 runs many tiles: {_USE}")
    patch = _square(getattr(config, "patch_size", None))
    tokens = {state.shape[1] for state in known if state.dim() == 3}
    prefix = 0
    if patch and len(tokens) == 1:  # a plain ViT
        prefix = max(next(iter(tokens)) - (size // patch) ** 2, 0)
    grids, widths = [], []
    for state in states:
        if state is None:
            grids.append(0)
            widths.append(0)
            continue
        grid = state.shape[2] if state.dim() == 4 else math.isqrt(state.shape[1] - prefix)
        cells = state.shape[2] * state.shape[3] if state.dim() == 4 else state.shape[1] - prefix
        if grid**2 != cells:
            raise ValueError(f"a {kind!r} backbone gives {tuple(state.shape)} for an image: {_USE}")
        grids.append(grid)
        widths.append(state.shape[1] if state.dim() == 4 else state.shape[2])
    return Geometry(size, tuple(widths), tuple(grids), prefix)


@lru_cache(maxsize=256)
def _features_per_side(settings: str, used: int, tile: int) -> int:
    whole = _geometry(settings)
    kind = json.loads(settings)["model_type"]
    if tile != whole.image_size and kind in _ONE_SIZE:
        raise ValueError(f"a {kind!r} backbone runs on tiles of {whole.image_size} pixels alone, not of {tile}")
    if tile == whole.image_size and kind in TESTED - {"timm_wrapper"}:  # which has nets that fail once they are cut
        return whole.grids[used]
    patch = _square(json.loads(settings).get("patch_size"))
    if patch and not whole.in_stages and tile != whole.image_size and tile % patch:
        raise ValueError(f"a tile of {tile} pixels is no whole number of the backbone's patches of {patch}")
    features = _cut_shape(settings, used, tile)
    if len(features) == 4:
        grid, cells = features[2], features[2] * features[3]
    else:  # what stands before the grid does not depend on the tile's size
        native = _cut_shape(settings, used, whole.image_size)
        cells = features[1] - (native[1] - whole.grids[used] ** 2)
        grid = math.isqrt(max(cells, 0))
    if grid < 1 or grid**2 != cells:
        raise ValueError(f"a {kind!r} backbone gives {features} for a tile of {tile} pixels: {_USE}")
    return grid


@lru_cache(maxsize=256)
def _cut_shape(settings: str, used: int, tile: int) -> tuple[int, ...]:
    model, config, size = _meta_model(settings)
    blocks = _geometry(settings).blocks
    images = torch.empty(1, _channels(config, model), tile, tile, dtype=model.dtype, device="meta")

    def run() -> Tensor:
        return last_features(keep_blocks(model, blocks, used), images, used, size)

    return tuple(
        _run_meta(config.model_type, f"cut to {used} blocks does not run on tiles of {tile} pixels", run).shape
    )


def _channels(config: Any, model: Any) -> int:
    if config.model_type == "timm_wrapper":
        return model.timm_model.pretrained_cfg["input_size"][0]
    return getattr(config, "num_channels", 3)


def _square(size: Any) -> int | None:
    """The side, given as it is or as a pair of equal sides; None for anything else."""
    if isinstance(size, (list, tuple)) and len(size) == 2 and size[0] == size[1]:
        size = size[0]
    return size if isinstance(size, int) else None
