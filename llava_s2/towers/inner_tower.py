"""The vision tower inside a larger model, a whole VLM or a two-tower one; and the towers that are in fact a SigLIP."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from llava_s2.errors import InputError
from llava_s2.s2.backbones import build_backbone, model_class
from llava_s2.weight_files import first_line, list_names, read_tensors, weight_files

# Which compute what SigLIP does on a whole square image: Idefics 2 and 3 and SmolVLM number positions by their place in
# the image, SigLIP 2's NaFlex takes patches that have been cut and resizes its position embeddings to their grid.
_SIGLIP_LIKE = {"idefics2_vision", "idefics3_vision", "smolvlm_vision", "siglip2_vision_model"}
_SHARED = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels", "patch_size",
    "layer_norm_eps", "hidden_act", "attention_dropout",
)  # fmt: skip
# What stands after the blocks, which no feature goes through.
AFTER_BLOCKS = re.compile(r"(\w+\.)?(head|pooler|post_layernorm|layernorm|rms_norm|visual_projection|norm)(\.|$)")


def inner_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The vision part of a model's config, in the form in which S2 runs it."""
    found: Any = config
    while getattr(found, "vision_config", None) is not None:
        found = found.vision_config
    if found.model_type not in _SIGLIP_LIKE:
        return found
    side = getattr(found, "image_size", None) or math.isqrt(found.num_patches) * found.patch_size
    shared = {key: getattr(found, key) for key in _SHARED}
    return SiglipVisionConfig(**shared, image_size=side, vision_use_head=False)


def inner_tensors(name: str | Path, config: PreTrainedConfig) -> dict[str, Tensor]:
    """The tensors of the tower inside a larger checkpoint, under the tower's own names. No other is read, unless the
    checkpoint has other names, which transformers changes as it loads the whole model.

    Args:
        name: a folder or hub id. config: the tower's, see `inner_config`.

    Raises:
        InputError: no tensors in the checkpoint make up such a tower.
    """
    with torch.device("meta"):
        wanted = build_backbone(config).state_dict().keys()
    files = {key: file for file in weight_files(str(name)) for key in _names(file)}
    known = {key: key for key in files}
    sample = max(wanted, key=lambda key: (not AFTER_BLOCKS.match(key), len(key)))
    prefixes = {key.removesuffix(sample) for key in known if key == sample or key.endswith("." + sample)}
    prefix = max(sorted(prefixes), key=lambda each: sum(each + key in known for key in wanted), default="")
    if not prefixes or any(prefix + key not in known for key in wanted if not AFTER_BLOCKS.match(key)):
        return _of_whole_model(name, config)
    places: dict[str, dict[str, str]] = {}
    for key in wanted:
        if prefix + key in files:
            places.setdefault(files[prefix + key], {})[prefix + key] = key
    return siglip_tensors({new: tensor for file, names in places.items() for new, tensor in _read(file, names)}, config)


def _of_whole_model(name: str | Path, config: PreTrainedConfig) -> dict[str, Tensor]:
    """The tensors of the tower inside a model that transformers loads, whatever names its checkpoint has for them."""
    try:
        known = type(AutoConfig.from_pretrained(name)) in MODEL_MAPPING
        auto: Any = AutoModel if known else AutoModelForImageTextToText
        model, report = auto.from_pretrained(name, dtype="auto", output_loading_info=True)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        raise InputError(f"vision tower {name}: {first_line(error)}") from error
    kind = model_class(config)
    place, tower = next(((place, part) for place, part in model.named_modules() if isinstance(part, kind)), ("", None))
    own = (key.removeprefix(f"{place}.") for key in report["missing_keys"] if key.startswith(f"{place}."))
    missing = sorted(key for key in own if not AFTER_BLOCKS.match(key))
    if tower is None or missing:
        lacks = f"the weights lack {list_names(missing)}" if missing else f"holds no {config.model_type}"
        raise InputError(f"vision tower {name}: {lacks}")
    return tower.state_dict()


def siglip_tensors(tensors: Mapping[str, Tensor], config: PreTrainedConfig) -> dict[str, Tensor]:
    """The same tensors with a patch embedding that NaFlex has as a linear layer made the convolution that it is."""
    found = dict(tensors)
    weight = found.get("embeddings.patch_embedding.weight")
    if weight is not None and weight.dim() == 2 and isinstance(config, SiglipVisionConfig):
        patch: Any = config.patch_size  # a patch's pixels come row by row, their channels together
        cut = weight.reshape(weight.shape[0], patch, patch, config.num_channels)
        found["embeddings.patch_embedding.weight"] = cut.permute(0, 3, 1, 2).contiguous()
    return found


def as_siglip(model: nn.Module) -> PreTrainedModel | None:
    """A loaded model's vision part as the SigLIP that it is, with its weights; None for another kind."""
    config: Any = getattr(model, "config", None)
    while getattr(config, "vision_config", None) is not None:
        config = config.vision_config
    if not isinstance(model, PreTrainedModel) or config.model_type not in _SIGLIP_LIKE:
        return None
    stock = next(module for module in model.modules() if isinstance(module, model_class(config)))
    form: Any = inner_config(config)
    with torch.device("meta"):
        siglip: Any = SiglipVisionModel(form)
    siglip.load_state_dict(siglip_tensors(stock.state_dict(), form), strict=False, assign=True)
    embeddings = siglip.embeddings if hasattr(siglip, "embeddings") else siglip.vision_model.embeddings
    embeddings.position_ids = torch.arange(embeddings.num_positions, device=stock.device).expand(1, -1)
    siglip.config.dtype = stock.dtype
    return siglip.train(stock.training)


def _names(file: str) -> list[str]:
    if file.endswith(".safetensors"):
        with safe_open(file, "pt") as opened:
            return list(opened.keys())
    return list(read_tensors(file))


def _read(file: str, names: dict[str, str]) -> list[tuple[str, Tensor]]:
    if file.endswith(".safetensors"):
        with safe_open(file, "pt") as opened:
            return [(new, opened.get_tensor(old)) for old, new in names.items()]
    tensors = read_tensors(file)
    return [(new, tensors[old]) for old, new in names.items()]
