"""A stock ``LlavaForConditionalGeneration`` from its three parts: language model, projector, vision tower."""

from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import LlavaForConditionalGeneration, LlavaProcessor, PreTrainedConfig

from llava_s2.errors import InputError
from llava_s2.formats.contents import LlavaContents
from llava_s2.formats.lazy_tensors import lazily
from llava_s2.model.embedded import resolve_language_model, resolve_vision_tower
from llava_s2.model.language_model import load_language_model
from llava_s2.model.processor import build_image_processor, build_processor
from llava_s2.model.projector import HIDDEN_ACT, new_projector
from llava_s2.model.templates import IMAGE_MARKERS, IMAGE_START_TOKEN, OWN, find_template
from llava_s2.model.tokenizer import load_tokenizer
from llava_s2.s2 import S2VisionModel
from llava_s2.towers.load_tower import load_image_statistics, load_vision_backbone, tower_config


def assemble(
    llm: str | Path,
    vision_tower: str | Path,
    scales: list[int],
    *,
    feature_layer: int | None = None,
    template: str = "vicuna_v1",
    image_aspect_ratio: str = "pad",
    resize_output_to_idx: int = 0,
    projector_type: str = "mlp2x_gelu",
    dtype: str | torch.dtype = "float32",
    gguf_file: str | None = None,
    **load_options: Any,
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Builds a LLaVA-S² whose projector is yet to be trained.

    Args:
        llm: folder or hub id of a causal language model, or the path of a GGUF file; or ``embedded``.
        vision_tower: folder or hub id of a transformers vision model with its ``preprocessor_config.json``;
            ``open_clip:…``, ``timm:…`` or ``mae:…`` (see ``NamedTower``); or ``embedded``.
        scales: image sides in pixels, ascending, the first one the tower's own; one scale is plain LLaVA.
        feature_layer: which hidden state of the tower is read. Default: LLaVA's -2 of a plain ViT, the last stage of
            a net in stages.
        template, image_aspect_ratio: see ``build_processor``; image markers that a template writes become tokens.
        resize_output_to_idx: the scale whose feature grid the visual tokens have; -1 is the largest.
        projector_type: ``mlp2x_gelu`` or ``linear``, LLaVA's names.
        dtype: of all weights, a torch dtype or its name.
        gguf_file: the GGUF file's name in the folder ``llm``.
        load_options: for ``from_pretrained``: ``device_map``, ``quantization_config``.

    Returns:
        The model, in eval mode, and its processor. Every token of the LLM keeps its id and its logit; ``<image>`` is
        a new token whose logit never is the largest (see ``LlavaContents``).

    Raises:
        InputError: a folder that cannot be read as what it should be, or scales that the tower cannot split.
    """
    dtype = torch_dtype(dtype)
    contents = contents_of_parts(
        partial(load_language_model, dtype=dtype),
        llm,
        vision_tower,
        scales,
        feature_layer=feature_layer,
        template=template,
        image_aspect_ratio=image_aspect_ratio,
        resize_output_to_idx=resize_output_to_idx,
        projector_type=projector_type,
        gguf_file=gguf_file,
    )
    return contents.build(str(llm), dtype, **load_options), contents.processor


def contents_of_parts(
    read_language_model: Callable[..., tuple[Mapping[str, Any], PreTrainedConfig]],
    llm: str | Path,
    vision_tower: str | Path,
    scales: list[int],
    *,
    feature_layer: int | None = None,
    template: str = "vicuna_v1",
    image_aspect_ratio: str = "pad",
    resize_output_to_idx: int = 0,
    projector_type: str = "mlp2x_gelu",
    gguf_file: str | None = None,
) -> LlavaContents:
    """A LLaVA-S² with a new projector, yet to be loaded or written.

    Args:
        read_language_model: takes a folder and ``gguf_file``, and gives the language model's tensors and its config.
        llm and the others: see `assemble`.

    Raises:
        InputError: see `assemble`.
    """
    llm, gguf_file = split_gguf(resolve_language_model(llm), gguf_file)
    vision_tower = resolve_vision_tower(vision_tower)
    vision_config = tower_config(  # before any weight is loaded
        vision_tower, scales, feature_layer, image_aspect_ratio, resize_output_to_idx
    )
    markers = IMAGE_MARKERS if template != OWN and IMAGE_START_TOKEN in find_template(template) else ()
    processor = build_processor(
        load_tokenizer(llm, gguf_file=gguf_file, extra_tokens=markers),
        vision_config,
        *load_image_statistics(vision_tower),
        image_aspect_ratio=image_aspect_ratio,
        template=template,
    )
    language_model, text_config = read_language_model(llm, gguf_file=gguf_file)
    backbone = load_vision_backbone(vision_tower, vision_config.backbone_config, torch.float32)
    tower = S2VisionModel.wrap(backbone, scales, **vision_config.options)
    projector = new_projector(tower.config.hidden_size, text_config.hidden_size, projector_type)
    return LlavaContents.put_together(
        lazily(language_model),
        text_config,
        lazily(projector),
        lazily(tower.state_dict()),
        tower.config,
        processor,
        projector_hidden_act=HIDDEN_ACT[projector_type],
    )


def load_image_processor(
    name: str | Path,
    scales: list[int],
    image_aspect_ratio: str = "pad",
    *,
    backend: Literal["pil", "torchvision"] = "pil",
) -> Any:
    """The image preparation that goes with a tower at given scales: its own normalisation, one resize to the largest.

    Args:
        name: of the tower, as ``assemble`` takes it. The others: see ``build_image_processor``.

    Example:
        >>> process = load_image_processor("open_clip:ViT-L-14/laion2b_s32b_b82k", [224, 448])
        >>> process(images, return_tensors="pt")["pixel_values"]  # (n, 3, 448, 448)
    """
    mean, std = load_image_statistics(resolve_vision_tower(name))
    side = scales[-1]
    if image_aspect_ratio in ("keep", "dynamic"):
        side = tower_config(resolve_vision_tower(name), scales, image_aspect_ratio=image_aspect_ratio).image_size
    return build_image_processor(side, mean, std, image_aspect_ratio, backend=backend)


def split_gguf(llm: str | Path, gguf_file: str | None = None) -> tuple[str, str | None]:
    """Folder and file name of a GGUF language model given as the file's path; anything else as it is.

    Raises:
        InputError: it is a GGUF file, and the package that reads those is not installed.
    """
    folder = str(llm)
    if gguf_file is None and folder.endswith(".gguf"):
        folder, gguf_file = str(Path(llm).parent), Path(llm).name
    if gguf_file is not None and find_spec("gguf") is None:
        raise InputError(f"{folder}/{gguf_file}: GGUF files are read with gguf: pip install 'llava-s2[tiny]'")
    return folder, gguf_file


def torch_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """A floating-point torch dtype by its name. Raises InputError for anything else."""
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise InputError(f"dtype {dtype!r} is not known; use float32, bfloat16 or float16")
    return found
