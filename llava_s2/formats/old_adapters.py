"""Adapters of this project's first releases, whose base is a bare language model, or a LLaVA of any kind.

To be removed with release 0.3; ``llava-s2 convert`` makes a folder of one that stays. Its config.json is the whole
model's and names the tower (``mm_vision_tower``) and what lay below (``mm_base``).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from llava_s2.errors import InputError
from llava_s2.formats.adapters import adapter_tensors, apply_adapter
from llava_s2.formats.base_record import named_base
from llava_s2.formats.configs import llava_text_config, read_config, saved_processor
from llava_s2.formats.contents import LlavaContents
from llava_s2.formats.identify import Checkpoint, identify
from llava_s2.formats.lazy_tensors import lazily
from llava_s2.formats.llava_config import projector_fault
from llava_s2.formats.llava_reader import base_language_model, check_hidden_size
from llava_s2.formats.native import at_scales, tower_like
from llava_s2.formats.tensor_names import split
from llava_s2.model.assemble import torch_dtype
from llava_s2.model.embedded import resolve_vision_tower
from llava_s2.s2 import S2VisionModel

Load = Callable[..., tuple[LlavaForConditionalGeneration, LlavaProcessor]]


def load_old_adapter(
    checkpoint: Checkpoint,
    base: str | Path | None,
    vision_tower: str | None,
    dtype: str | torch.dtype,
    options: dict[str, Any],
    load: Load,
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Loads such an adapter over its base; ``load`` is ``load_pretrained``, for a base that is a LLaVA.

    Raises:
        InputError: the base is not there, or does not fit.
    """
    name = checkpoint.name
    config = read_config(name)
    processor = saved_processor(name)
    base_name = named_base(checkpoint, base)
    projector = split(lazily(adapter_tensors(name))).projector
    hidden_size = config.text_config.hidden_size
    tower_name = vision_tower or getattr(config, "mm_vision_tower", None)  # recorded by training
    if base_name.endswith(".gguf") or identify(base_name).kind == "llm":
        if tower_name is None:
            raise InputError(f"{name}: its config.json names no vision tower; name it with --vision_tower")
        language_model = base_language_model(base_name, hidden_size, name)
        dtype = language_model["embed_tokens.weight"].dtype if dtype == "auto" else torch_dtype(dtype)
        tower = tower_like(config.vision_config, resolve_vision_tower(tower_name), dtype)
    else:
        under = identify(base_name)
        text: Any = read_config(base_name).text_config if under.kind in ("hf", "adapter") else llava_text_config(under)
        check_hidden_size(text.hidden_size, hidden_size, base_name, name)
        # What lay under the base when this adapter was trained, if not what the base names (--base, recorded).
        below = getattr(config, "mm_base", None) if base is None else None
        model, _ = load(
            base_name, below, vision_tower=tower_name, replace_vision_tower=tower_name is not None, dtype=dtype
        )
        dtype = model.dtype
        tensors = LlavaContents.in_memory(model, processor).tensors
        language_model, projector = tensors.language_model, projector or tensors.projector
        tower = model.model.vision_tower
        backbone = tower.backbone if isinstance(tower, S2VisionModel) else tower
        tower = at_scales(backbone, config.vision_config, base_name)
    if not projector:
        raise InputError(f"{name}: the adapter does not hold the projector, and neither does its base {base_name}")
    shapes = {key: tensor.shape for key, tensor in projector.items()}
    if fault := projector_fault(shapes, tower.config.hidden_size, hidden_size):
        raise InputError(f"{name}: {fault}")
    contents = LlavaContents.put_together(
        language_model,
        config.text_config,
        projector,
        lazily(tower.state_dict()),
        tower.config,
        processor,
        vision_feature_layer=config.vision_feature_layer,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        projector_hidden_act=config.projector_hidden_act,
    )
    return apply_adapter(contents.build(name, dtype, **options), name, options), processor
