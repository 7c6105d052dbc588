"""Checkpoints in the original LLaVA's format: full, or a projector or a LoRA over a language model.

The names and config keys are those that the public LLaVA code (v1.2.2, its S2 tower) writes.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.utils import logging

from llava_s2.errors import InputError
from llava_s2.formats.base_record import named_base
from llava_s2.formats.configs import llava_processor, llava_text_config, llava_vision_config
from llava_s2.formats.contents import LlavaContents
from llava_s2.formats.identify import TRAINED_FILES, Checkpoint, identify
from llava_s2.formats.lazy_tensors import LazyTensor, lazily, lazy_tensors
from llava_s2.formats.llava_config import LlavaSettings, projector_fault, projector_layers
from llava_s2.formats.tensor_names import Components, split
from llava_s2.model.assemble import split_gguf, torch_dtype
from llava_s2.model.language_model import load_language_model
from llava_s2.model.projector import with_identity
from llava_s2.s2 import S2VisionModel
from llava_s2.towers.load_tower import load_vision_backbone
from llava_s2.weight_files import check_numbers, find_file, read_tensors

logger = logging.get_logger(__name__)


def read_llava(
    checkpoint: Checkpoint,
    base: str | Path | None,
    vision_tower: str | None,
    dtype: str | torch.dtype,
    *,
    replace_vision_tower: bool = False,
    template: str | None = None,
) -> LlavaContents:
    """Reads a checkpoint in the original LLaVA's format, but for an adapter's LoRA. Only the tower is in memory then.

    Args:
        checkpoint: of a ``llava_…`` kind. The others: as of ``load_pretrained``. ``dtype`` is the tower's and the
            language model's; the projector keeps its own.

    Raises:
        InputError: files are missing, or do not fit together.
    """
    name = checkpoint.name
    source = f"{name}/config.json"
    text_config = llava_text_config(checkpoint)
    settings = LlavaSettings.read(checkpoint.config, source)

    # Everything that can be known without reading weights comes first.
    tower_name = vision_tower or settings.vision_tower
    vision_config = llava_vision_config(settings, source, tower_name)
    processor = llava_processor(checkpoint, base, vision_tower, template)

    tensors = _components(checkpoint, base, text_config)
    check_numbers(name, {key: tensor.read() for key, tensor in tensors.projector.items()})
    act = projector_layers(tensors.projector, settings.projector_type, source)
    if act == "linear":  # the stock projector with no activation and an identity second layer
        layer = {key.removeprefix("linear_1."): tensor.read() for key, tensor in tensors.projector.items()}
        tensors.projector = lazily(with_identity(layer))
    shapes = {key: tensor.shape for key, tensor in tensors.projector.items()}
    if fault := projector_fault(shapes, vision_config.hidden_size, text_config.hidden_size):
        raise InputError(f"{name}: {fault}")
    dtype = tensors.language_model["embed_tokens.weight"].dtype if dtype == "auto" else torch_dtype(dtype)
    own = {} if replace_vision_tower else {key: tensor.read() for key, tensor in tensors.vision_tower.items()}
    if own and vision_tower:
        logger.warning(
            f"{name}: the vision tower's weights inside are used, and of {vision_tower} its config; "
            "--replace_vision_tower would take its weights"
        )
    backbone_config = vision_config.backbone_config if settings.scales else vision_config
    tower = load_vision_backbone(tower_name, backbone_config, dtype, own)
    if settings.scales:
        tower = S2VisionModel.wrap(tower, settings.scales, feature_layer=settings.feature_layer)
    return LlavaContents.put_together(
        {key: tensor.to(dtype) for key, tensor in tensors.language_model.items()},
        text_config,
        tensors.projector,
        lazily(tower.state_dict()),
        tower.config,
        processor,
        vision_feature_layer=-1 if settings.scales else settings.feature_layer,
        vision_feature_select_strategy=processor.vision_feature_select_strategy,
        projector_hidden_act=act,
    )


def base_language_model(base: str, hidden_size: int, name: str) -> dict[str, LazyTensor]:
    """The tensors of the language model under an adapter or projector, once its size is known to fit.

    Args:
        base: folder, hub id or GGUF file of a language model, or of a LLaVA that holds it.
        hidden_size: that it must have. name: what stands over it, which errors are about.

    Raises:
        InputError: it is not there, or another one.
    """
    folder, gguf_file = split_gguf(base)
    if gguf_file is not None:
        if not Path(base).is_file():
            raise InputError(f"{name}: the model it was trained on, {base}, is not there; name it with --base")
        tensors, config = load_language_model(folder, gguf_file=gguf_file, dtype=torch.float32)
        check_hidden_size(config.hidden_size, hidden_size, base, name)
        return lazily(tensors)
    config_dict = identify(base).config
    config_dict = config_dict.get("text_config", config_dict)
    if "hidden_size" in config_dict:
        check_hidden_size(config_dict["hidden_size"], hidden_size, base, name)
    stored = split(lazy_tensors(base)).language_model
    if "embed_tokens.weight" not in stored:
        raise InputError(f"{base}: its weights hold no embed_tokens.weight, so it is no Llama-like language model")
    check_hidden_size(stored["embed_tokens.weight"].shape[1], hidden_size, base, name)
    return stored


def check_hidden_size(found: int, wanted: int, base: str, name: str) -> None:
    """Raises InputError where a language model is not as wide as the one that something was trained on."""
    if found != wanted:
        raise InputError(
            f"{name}: was trained on a language model of hidden size {wanted}, but {base} has {found}; "
            "name the right one with --base"
        )


def _components(checkpoint: Checkpoint, base: str | Path | None, text_config: PreTrainedConfig) -> Components:
    """The checkpoint's tensors; over a base, what was trained takes the place of the base's."""
    name = checkpoint.name
    if checkpoint.kind == "llava_full":
        return split(lazy_tensors(name))
    hidden_size: Any = text_config.hidden_size
    language_model = base_language_model(named_base(checkpoint, base), hidden_size, name)
    files = ("mm_projector.bin",) if checkpoint.kind == "llava_projector" else TRAINED_FILES
    trained = split(lazily(read_tensors(next(path for file in files if (path := find_file(name, file))))))
    rows, known_rows = (tensors.get("embed_tokens.weight") for tensors in (trained.language_model, language_model))
    if rows and known_rows and rows.shape[0] < known_rows.shape[0]:  # of the new tokens alone, as stage 1 leaves them
        trained.language_model["embed_tokens.weight"] = known_rows.with_rows(rows)
    return replace(trained, language_model=language_model | trained.language_model)
