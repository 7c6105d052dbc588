"""A stock ``LlavaForConditionalGeneration`` from its three parts: language model, projector, vision tower."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)

from llava_s2.errors import InputError
from llava_s2.model.embedded import resolve_language_model, resolve_vision_tower
from llava_s2.model.language_model import embedding_name, load_language_model
from llava_s2.model.processor import build_image_processor, build_processor, num_image_tokens
from llava_s2.model.templates import end_of_turn
from llava_s2.model.tokenizer import IMAGE_TOKEN, load_tokenizer
from llava_s2.s2 import S2VisionModel
from llava_s2.s2.remote import LlavaConfig
from llava_s2.towers.load_tower import load_image_statistics, load_vision_backbone, tower_config
from llava_s2.weight_files import list_names


def assemble(
    llm: str | Path,
    vision_tower: str | Path,
    scales: list[int],
    *,
    feature_layer: int | None = None,
    template: str = "vicuna_v1",
    image_aspect_ratio: str = "pad",
    resize_output_to_idx: int = 0,
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
        template, image_aspect_ratio: see ``build_processor``.
        resize_output_to_idx: the scale whose feature grid the visual tokens have; -1 is the largest.
        dtype: of all weights, a torch dtype or its name.
        gguf_file: the GGUF file's name in the folder ``llm``.
        load_options: for ``from_pretrained``: ``device_map``, ``quantization_config``.

    Returns:
        The model, in eval mode, and its processor. Every token of the LLM keeps its id and its logit; ``<image>`` is
        a new token whose logit never is the largest (see ``add_token_rows``).

    Raises:
        InputError: a folder that cannot be read as what it should be, or scales that the tower cannot split.
    """
    dtype = torch_dtype(dtype)
    llm, gguf_file = split_gguf(resolve_language_model(llm), gguf_file)
    vision_tower = resolve_vision_tower(vision_tower)
    vision_config = tower_config(  # before any weight is loaded
        vision_tower, scales, feature_layer, image_aspect_ratio, resize_output_to_idx
    )
    image_mean, image_std = load_image_statistics(vision_tower)
    processor = build_processor(
        load_tokenizer(llm, gguf_file=gguf_file),
        vision_config,
        image_mean,
        image_std,
        image_aspect_ratio=image_aspect_ratio,
        template=template,
    )

    language_model, text_config = load_language_model(llm, gguf_file=gguf_file, dtype=dtype)
    tower = S2VisionModel.wrap(
        load_vision_backbone(vision_tower, vision_config.backbone_config, dtype),
        scales,
        **vision_config.options,
    )
    projector = new_projector(tower.config.hidden_size, text_config.hidden_size)
    model = build(language_model, text_config, projector, tower, processor, llm, dtype=dtype, **load_options)
    return model, processor


def build(
    language_model: dict[str, Tensor],
    text_config: PreTrainedConfig,
    projector: dict[str, Tensor],
    tower: PreTrainedModel,
    processor: LlavaProcessor,
    source: str | Path,
    *,
    vision_feature_layer: int | list[int] = -1,
    vision_feature_select_strategy: Literal["default", "full"] = "full",
    projector_hidden_act: str = "gelu",
    **load_options: Any,
) -> LlavaForConditionalGeneration:
    """Puts the parts together with transformers' own loader.

    Args:
        language_model: tensors of the base model by name, and ``lm_head.weight`` where it is not tied.
        text_config: the language model's config; its vocabulary grows to the tokenizer's.
        projector: ``linear_1.weight``, ``linear_1.bias``, ``linear_2.weight``, ``linear_2.bias``.
        tower: the vision tower, with weights.
        source: the checkpoint that errors are about.
        load_options: for ``from_pretrained``: ``dtype``, ``device_map``, ``quantization_config``.

    Raises:
        InputError: tensors are missing, left over, or of a shape other than the configs say.
    """
    language_model = add_token_rows(language_model, text_config, len(processor.tokenizer))
    config = llava_config(
        text_config,
        tower.config,
        processor,
        vision_feature_layer=vision_feature_layer,
        vision_feature_select_strategy=vision_feature_select_strategy,
        projector_hidden_act=projector_hidden_act,
    )
    tensors = {
        ("" if name == "lm_head.weight" else "model.language_model.") + name: tensor
        for name, tensor in language_model.items()
    }
    tensors |= {f"model.multi_modal_projector.{name}": tensor for name, tensor in projector.items()}
    tensors |= {f"model.vision_tower.{name}": tensor for name, tensor in tower.state_dict().items()}
    loaded: Any = LlavaForConditionalGeneration.from_pretrained(
        None,
        config=config,
        state_dict=tensors,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # reported below, in one line
        **load_options,
    )
    model, report = loaded
    if mismatched := report["mismatched_keys"]:
        name, found, wanted = sorted(mismatched)[0]
        raise InputError(
            f"{source}: {name} has the shape {tuple(found)} in the weights, but the config says {tuple(wanted)}"
        )
    if missing := report["missing_keys"]:
        raise InputError(f"{source}: the weights lack {list_names(missing)}")
    if unexpected := report["unexpected_keys"]:
        raise InputError(f"{source}: the weights hold what the config does not tell of: {list_names(unexpected)}")
    model.generation_config = generation_config(processor, text_config)
    return model.eval()


def llava_config(
    text_config: PreTrainedConfig, vision_config: PreTrainedConfig, processor: LlavaProcessor, **settings: Any
) -> LlavaConfig:
    """The config of a LLaVA of these parts; ``text_config`` knows of the tokens that the processor added."""
    return LlavaConfig(
        vision_config=vision_config,
        text_config=text_config,
        image_token_index=processor.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=num_image_tokens(processor),
        tie_word_embeddings=text_config.tie_word_embeddings,
        **settings,
    )


def add_token_rows(
    language_model: dict[str, Tensor], text_config: PreTrainedConfig, vocab_size: int
) -> dict[str, Tensor]:
    """Grows the embedding and the head to ``vocab_size`` rows and records it in the config; never shrinks them.

    A new row is the mean of all rows. So the logit of a new token is the mean of the others, which is never the
    largest, and in a softmax over V tokens it takes less than 1 / V of the probability.
    """
    embedding = embedding_name(text_config)
    rows = text_config.vocab_size = language_model[embedding].shape[0]
    if rows >= vocab_size:
        return language_model
    text_config.vocab_size = vocab_size
    grown = dict(language_model)
    for name in (embedding, "lm_head.weight"):
        if name in grown:
            grown[name] = with_mean_rows(grown[name], vocab_size)
    return grown


def with_mean_rows(matrix: Tensor, rows: int) -> Tensor:
    """The matrix with rows added at its end, each the mean of those it has."""
    mean = matrix.mean(0, keepdim=True, dtype=torch.float32).to(matrix.dtype)
    return torch.cat([matrix, mean.expand(rows - matrix.shape[0], -1)])


def new_projector(vision_size: int, text_size: int) -> dict[str, Tensor]:
    """A fresh two-layer projector, float32, initialised as LLaVA's (``nn.Linear``'s default)."""
    first, second = nn.Linear(vision_size, text_size), nn.Linear(text_size, text_size)
    return {
        f"linear_{number}.{name}": value.detach()
        for number, layer in ((1, first), (2, second))
        for name, value in layer.named_parameters()
    }


def generation_config(processor: LlavaProcessor, text_config: PreTrainedConfig) -> GenerationConfig:
    """Greedy generation that ends at the end of a turn and never writes an image placeholder."""
    tokenizer = processor.tokenizer
    known = text_config.eos_token_id
    ends = [tokenizer.convert_tokens_to_ids(end_of_turn(str(processor.chat_template), tokenizer.eos_token))]
    for token in (known if isinstance(known, list) else [known], [tokenizer.eos_token_id]):
        ends += [i for i in token if i is not None and i not in ends]
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=ends if len(ends) > 1 else ends[0],
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=[tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)],
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
        >>> process(pictures, return_tensors="pt")["pixel_values"]  # (n, 3, 448, 448)
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
