"""``load_pretrained``: every kind of LLaVA checkpoint as the stock ``LlavaForConditionalGeneration``."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from torch import Tensor
from transformers import (
    AutoConfig,
    BitsAndBytesConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from llava_s2.errors import InputError
from llava_s2.formats.adapters import adapter_tensors, attach, check_base, find_base
from llava_s2.formats.base_record import BaseRecord
from llava_s2.formats.identify import TRAINED_FILES, Checkpoint, identify
from llava_s2.formats.names import TOWER_STEMS, Parts, select_strategy, split_parts
from llava_s2.model.assemble import assemble, build, split_gguf, torch_dtype
from llava_s2.model.embedded import NAME as EMBEDDED
from llava_s2.model.embedded import resolve_language_model, resolve_model, resolve_vision_tower
from llava_s2.model.language_model import load_language_model
from llava_s2.model.processor import build_processor, load_processor, prefix_tokens, set_template
from llava_s2.model.quantizations import BITSANDBYTES, INT8
from llava_s2.model.templates import IMAGE_END_TOKEN, IMAGE_START_TOKEN, TEMPLATES, with_image_start_end
from llava_s2.model.tokenizer import load_tokenizer
from llava_s2.s2 import S2VisionConfig, S2VisionModel
from llava_s2.s2.int8 import check_int8, quantize_linears
from llava_s2.towers.load_tower import load_image_statistics, load_vision_backbone, load_vision_config
from llava_s2.weight_files import find_file, first_line, list_names, model_tensors, read_json, read_tensors

logger = logging.get_logger(__name__)

_UNQUANTIZED = ["lm_head", "model.vision_tower", "model.multi_modal_projector"]  # matched from the front
_IM_PATCH_TOKEN = "<im_patch>"


def load_pretrained(
    path: str | Path,
    base: str | Path | None = None,
    *,
    vision_tower: str | Path | None = None,
    replace_vision_tower: bool = False,
    dtype: str | torch.dtype = "auto",
    device_map: str | dict[str, Any] | None = None,
    quantization: str | None = None,
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Loads a LLaVA-S² or LLaVA checkpoint for inference, recognised by what its files hold.

    Args:
        path: a folder or hub id: a full checkpoint of this project or of Hugging Face's LLaVA, an adapter of this
            project, or the original LLaVA's format (full, LoRA, or projector only).
        base: the language model (or LLaVA checkpoint) under an adapter or projector, in place of the one it names.
        vision_tower: folder or hub id of the vision model, where the checkpoint does not hold it.
        replace_vision_tower: to use ``vision_tower`` although the checkpoint holds one, which else wins.
        dtype: of the weights: "auto" is that of the checkpoint's language model.
        device_map: where the weights go, as in transformers.
        quantization: of the language model's linear layers but its head: "4bit" or "8bit" with bitsandbytes, on a GPU;
            "int8" on a CPU, which "int8-all" does to the tower and the projector too.

    Returns:
        The model, in eval mode, adapters merged (with "4bit" and "8bit": attached), and its processor.

    Raises:
        InputError: the files do not make up a checkpoint; the message names the file and the way out.

    Example:
        >>> model, processor = load_pretrained("bfshi/llava-v1.5-7b-s2-lora", "lmsys/vicuna-7b-v1.5", dtype="bfloat16")
    """
    checkpoint = identify(resolve_model(path))
    if replace_vision_tower and vision_tower is None:
        raise InputError("--replace_vision_tower: name the tower to use by --vision_tower")
    tower = None if vision_tower is None else resolve_vision_tower(vision_tower)
    options: dict[str, Any] = {"device_map": device_map}
    if quantization in INT8:
        check_int8_is_possible(quantization, device_map)
    elif quantization is not None:
        options["quantization_config"] = quantization_config(quantization, dtype)
    if checkpoint.kind == "llm":
        raise InputError(
            f"{checkpoint.name}: a {checkpoint.config.get('model_type')} model without projector or vision tower, not "
            "a LLaVA checkpoint; `llava-s2 train pretrain` makes one of it"
        )
    model, processor = _load(checkpoint.name, base, tower, dtype, options, replace_vision_tower)
    if quantization in INT8:
        quantize_linears(model.model.language_model if quantization == "int8" else model.model)
    return model, processor


def _load(
    name: str | Path,
    base: str | Path | None,
    vision_tower: str | None,
    dtype: str | torch.dtype,
    options: dict[str, Any],
    replace_vision_tower: bool = False,
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """One checkpoint, by its kind."""
    checkpoint = identify(resolve_model(name))
    if checkpoint.kind == "hf":
        if vision_tower is not None and not replace_vision_tower:
            _say_own_tower_is_used(checkpoint.name, vision_tower)
            vision_tower = None
        return _load_hf(checkpoint, vision_tower, dtype, options)
    if checkpoint.kind == "adapter":
        load = _load_old_adapter if checkpoint.config else _load_adapter
        return load(checkpoint, base, vision_tower, dtype, options)
    return _load_llava(checkpoint, base, vision_tower, dtype, options, replace_vision_tower)


def _say_own_tower_is_used(name: str, vision_tower: str) -> None:
    logger.warning(
        f"{name}: the vision tower inside is used, not {vision_tower}; --replace_vision_tower would take that one"
    )


def check_int8_is_possible(quantization: str, device_map: str | dict[str, Any] | None = None) -> None:
    """Raises InputError where int8 weights cannot be had: on a GPU, or on a processor without fast int8 products."""
    if device_map not in (None, "cpu", {"": "cpu"}):
        raise InputError(f'quantization={quantization} is for a CPU; on a GPU use "8bit" or "4bit"')
    try:
        check_int8()
    except ValueError as error:
        raise InputError(f"quantization={quantization}: {error}") from None


def quantization_config(quantization: str, dtype: str | torch.dtype = "auto") -> BitsAndBytesConfig:
    """How bitsandbytes quantizes the language model; the tower, the projector and the head keep their dtype.

    Raises:
        InputError: another name than "4bit" or "8bit", no bitsandbytes, or no GPU.
    """
    if quantization not in BITSANDBYTES:
        raise InputError(f"quantization {quantization!r} is not known; use one of {', '.join(BITSANDBYTES + INT8)}")
    if find_spec("bitsandbytes") is None:
        raise InputError(f"quantization={quantization} needs bitsandbytes: pip install 'llava-s2[train]'")
    if not torch.cuda.is_available():
        raise InputError(f"quantization={quantization} needs a GPU, and torch sees none; leave it out to use the CPU")
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=_UNQUANTIZED)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16 if dtype == "auto" else torch_dtype(dtype),
        llm_int8_skip_modules=_UNQUANTIZED,
    )


# --- Hugging Face's format: this project's own full checkpoints, and single-scale LLaVA -----------------------------


def _load_hf(
    checkpoint: Checkpoint, vision_tower: str | None, dtype: str | torch.dtype, options: dict[str, Any]
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    name = checkpoint.name
    config = read_config(name)
    tensors = model_tensors(name)  # checks that the files are whole; nothing is in memory yet
    processor = saved_processor(name)
    if vision_tower is not None:
        parts = split_parts(tensors)
        dtype = _resolve_dtype(dtype, parts.language_model)
        tower = _tower_like(config.vision_config, vision_tower, dtype)
        return _rebuild(
            config, parts.language_model, parts.projector, tower, processor, name, dtype, options
        ), processor
    del tensors
    try:
        loaded: Any = LlavaForConditionalGeneration.from_pretrained(
            name,
            config=config,
            dtype=dtype if dtype == "auto" else torch_dtype(dtype),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, in one line
            **options,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{name}: {first_line(error)}") from error
    model, report = loaded
    if report["mismatched_keys"]:
        key, found, wanted = sorted(report["mismatched_keys"])[0]
        raise InputError(f"{name}: {key} has the shape {tuple(found)}, but config.json says {tuple(wanted)}")
    if report["missing_keys"]:
        raise InputError(f"{name}: the weights lack {list_names(report['missing_keys'])}")
    return model.eval(), processor


def read_config(name: str) -> Any:  # a LlavaConfig; its declared fields may be None, which they are not here
    """The config of a checkpoint in transformers' format."""
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{name}/config.json: {first_line(error)}") from error
    return config


def saved_template(checkpoint: Checkpoint) -> str:
    """The chat template that ``load_pretrained`` gives a LLaVA checkpoint's processor; no weights are read.

    Raises:
        InputError: no processor can be read there.
    """
    if checkpoint.kind in ("hf", "adapter"):
        return str(checkpoint_processor(checkpoint).chat_template)
    template = TEMPLATES["vicuna_v1"]
    return with_image_start_end(template) if checkpoint.config.get("mm_use_im_start_end", False) else template


def saved_processor(name: str) -> LlavaProcessor:
    """The processor of a checkpoint in transformers' format."""
    try:
        processor = load_processor(name)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{name}: no processor could be read there ({first_line(error)})") from error
    if processor.patch_size is None:  # checkpoints older than transformers 4.46
        config = read_config(name)
        processor.patch_size = config.vision_config.patch_size
        processor.vision_feature_select_strategy = config.vision_feature_select_strategy
        processor.num_additional_image_tokens = prefix_tokens(config.vision_config)
    if processor.chat_template is None:  # LLaVA-1.5's first checkpoints, which speak its own format
        set_template(processor, "vicuna_v1")
    return processor


def _rebuild(
    config: Any,
    language_model: dict[str, Tensor],
    projector: dict[str, Tensor],
    tower: PreTrainedModel,
    processor: LlavaProcessor,
    source: str,
    dtype: torch.dtype,
    options: dict[str, Any],
) -> LlavaForConditionalGeneration:
    """A model of the given config from parts that come from different places."""
    return build(
        language_model,
        config.text_config,
        projector,
        tower,
        processor,
        source,
        vision_feature_layer=config.vision_feature_layer,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        projector_hidden_act=config.projector_hidden_act,
        dtype=dtype,
        **options,
    )


def _tower_like(wanted: Any, name: str, dtype: torch.dtype) -> PreTrainedModel:
    """The vision model ``name`` as the kind of tower that a config asks for: at its scales, or as it is."""
    found = load_vision_config(name)
    if isinstance(found, S2VisionConfig):
        found = found.backbone_config
    sizes = [
        S2VisionConfig(backbone_config=config, feature_layer=wanted.feature_layer).backbone_hidden_size
        if isinstance(wanted, S2VisionConfig)
        else getattr(config, "hidden_size", None)
        for config in (found, wanted.backbone_config if isinstance(wanted, S2VisionConfig) else wanted)
    ]
    if sizes[0] != sizes[1]:
        raise InputError(
            f"vision tower {name}: its features are {sizes[0]} wide, the checkpoint's are {sizes[1]}; "
            "name the tower that it was trained with"
        )
    return _at_scales(load_vision_backbone(name, found, dtype), wanted, name)


def _at_scales(backbone: PreTrainedModel, wanted: PreTrainedConfig, name: str) -> PreTrainedModel:
    if not isinstance(wanted, S2VisionConfig):
        return backbone
    try:
        return S2VisionModel.wrap(backbone, wanted.scales, **wanted.options)
    except ValueError as error:
        raise InputError(f"vision tower {name}: {error}") from error


# --- Adapters ------------------------------------------------------------------------------------------------------


def _load_adapter(
    checkpoint: Checkpoint,
    base: str | Path | None,
    vision_tower: str | None,
    dtype: str | torch.dtype,
    options: dict[str, Any],
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """A PEFT adapter of a LLaVA, whoever trained it."""
    name = checkpoint.name
    record = BaseRecord.load(name)
    place = find_base(name, record) if base is None else str(base)
    if isinstance(place, str) and _names_language_model(place, record):
        if record is None or record.parts is None:
            raise InputError(
                f"{name}: {place} is a language model, but the adapter stands on a LLaVA; name that by --base"
            )
        place = {**record.parts, "llm": place}
    if isinstance(place, dict):
        parts = {**place, "vision_tower": vision_tower or place["vision_tower"]}
        place = f"{parts['llm']} with {parts['vision_tower']}"
        own = "float32" if parts["gguf_file"] or split_gguf(resolve_language_model(parts["llm"]))[1] else None
        model, processor = assemble(**parts, dtype=own or dtype if dtype == "auto" else dtype, **options)
    else:
        quantization = options.get("quantization_config")
        is_folder = identify(resolve_model(place)).kind == "hf"
        if quantization is not None and is_folder:
            check_base(name, record, place, None)
            record = None
        model, processor = _load(place, None, vision_tower, dtype, options)
    check_base(name, record, place, model)
    if _has_processor(name):
        processor = saved_processor(name)
    return _adapted(model, name, options), processor


def _names_language_model(name: str, record: BaseRecord | None) -> bool:
    """Whether a base is named that is a language model alone. ``embedded`` is one where parts are recorded."""
    if name == EMBEDDED:
        return record is not None and record.parts is not None
    return name.endswith(".gguf") or identify(name).kind == "llm"


def _adapted(
    model: LlavaForConditionalGeneration, adapter: str, options: dict[str, Any]
) -> LlavaForConditionalGeneration:
    """The model with the adapter: merged, or attached where rounding the sum to 4 bits would lose it."""
    adapted: Any = attach(model, adapter)
    if "quantization_config" in options:
        return adapted.get_base_model().eval()
    return adapted.merge_and_unload().eval()


def checkpoint_config(checkpoint: Checkpoint) -> Any:
    """The config of a full model in transformers' format, or of the model under an adapter.

    Raises:
        InputError: the base of an adapter is not there as a folder or hub id.
    """
    if checkpoint.config:
        return read_config(checkpoint.name)
    place = find_base(checkpoint.name, BaseRecord.load(checkpoint.name))
    if isinstance(place, dict):
        raise InputError(f"{checkpoint.name}: its base is not there as a folder; make it again with llava-s2 init")
    return checkpoint_config(identify(resolve_model(place)))


def checkpoint_text_config(checkpoint: Checkpoint) -> Any:
    """The language model's config of a LLaVA of any kind; errors as of `checkpoint_config`."""
    if checkpoint.kind.startswith("llava"):
        return _llava_text_config(checkpoint.config, f"{checkpoint.name}/config.json")
    return checkpoint_config(checkpoint).text_config


def own_scales(name: str, vision_tower: str | None = None) -> list[int]:
    """The image sides, in pixels, that a LLaVA of any kind sees; no weights are read."""
    checkpoint = identify(resolve_model(name))
    if checkpoint.kind not in ("hf", "adapter"):
        scales = _llava_scales(checkpoint.config, f"{checkpoint.name}/config.json")
        tower: Any = None if scales else load_vision_config(vision_tower or checkpoint.config["mm_vision_tower"])
        return scales or [tower.image_size]
    if not checkpoint.config:
        place = find_base(checkpoint.name, BaseRecord.load(checkpoint.name))
        return list(place["scales"]) if isinstance(place, dict) else own_scales(place)
    vision = read_config(checkpoint.name).vision_config
    return list(getattr(vision, "scales", [vision.image_size]))


def _has_processor(name: str) -> bool:
    return any(find_file(name, file) for file in ("processor_config.json", "preprocessor_config.json"))


def checkpoint_processor(
    checkpoint: Checkpoint, base: str | Path | None = None, vision_tower: str | None = None
) -> LlavaProcessor:
    """The processor of a checkpoint of any kind but a bare language model; an adapter may lack its own."""
    if checkpoint.kind.startswith("llava"):
        return llava_processor(checkpoint, base, vision_tower)
    if checkpoint.kind == "hf" or _has_processor(checkpoint.name):
        return saved_processor(checkpoint.name)
    place = find_base(checkpoint.name, BaseRecord.load(checkpoint.name)) if base is None else str(base)
    if isinstance(place, dict):
        raise InputError(f"{checkpoint.name}: no processor could be read there, and its base is not a folder")
    return checkpoint_processor(identify(resolve_model(place)))


def _load_old_adapter(
    checkpoint: Checkpoint,
    base: str | Path | None,
    vision_tower: str | None,
    dtype: str | torch.dtype,
    options: dict[str, Any],
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """An adapter of this project's first releases: its base is a bare language model, or a LLaVA of any kind.

    Its config.json is the whole model's and names the tower (``mm_vision_tower``) and what lay below (``mm_base``).
    To be removed with release 0.3; ``llava-s2 convert`` makes a folder of it that stays.
    """
    name = checkpoint.name
    config = read_config(name)
    processor = saved_processor(name)
    base_name = named_base(checkpoint, base)
    projector = split_parts(adapter_tensors(name)).projector
    tower_name = vision_tower or getattr(config, "mm_vision_tower", None)  # recorded by training
    if base_name.endswith(".gguf") or identify(base_name).kind == "llm":
        if tower_name is None:
            raise InputError(f"{name}: its config.json names no vision tower; name it with --vision_tower")
        language_model = _base_language_model(base_name, config.text_config.hidden_size, name)
        dtype = _resolve_dtype(dtype, language_model)
        tower = _tower_like(config.vision_config, resolve_vision_tower(tower_name), dtype)
    else:
        _check_hidden_size(_hidden_size(identify(base_name)), config.text_config.hidden_size, base_name, name)
        # What lay under the base when this adapter was trained, if not what the base names (--base, recorded).
        below = getattr(config, "mm_base", None) if base is None else None
        under, _ = load_pretrained(
            base_name, below, vision_tower=tower_name, replace_vision_tower=tower_name is not None, dtype=dtype
        )
        dtype = under.dtype
        parts = split_parts(under.state_dict())
        language_model, projector = parts.language_model, projector or parts.projector
        if config.text_config.tie_word_embeddings:
            language_model.pop("lm_head.weight", None)
        tower = under.model.vision_tower
        backbone = tower.backbone if isinstance(tower, S2VisionModel) else tower
        tower = _at_scales(backbone, config.vision_config, base_name)
        del under
    if not projector:
        raise InputError(f"{name}: the adapter does not hold the projector, and neither does its base {base_name}")
    _check_projector(projector, tower.config.hidden_size, config.text_config.hidden_size, name)
    model = _rebuild(config, language_model, projector, tower, processor, name, dtype, options)
    return _adapted(model, name, options), processor


def named_base(checkpoint: Checkpoint, base: str | Path | None = None) -> str:
    """The model under an adapter or projector: the one given, or else the one that it names."""
    if base is not None:
        return resolve_language_model(base)
    if checkpoint.kind == "llava_projector":
        named = checkpoint.config.get("_name_or_path")
        if not named or find_file(named, "config.json") is None:
            raise InputError(f"{checkpoint.name}: holds a projector alone; name its language model with --base")
        return named
    adapter_config = find_file(checkpoint.name, "adapter_config.json")
    named = read_json(adapter_config).get("base_model_name_or_path") if adapter_config else None
    if not named:
        raise InputError(f"{checkpoint.name}: does not name the model it was trained on; name it with --base")
    named = resolve_language_model(named)
    if not named.endswith(".gguf") and find_file(named, "config.json") is None:
        raise InputError(
            f"{checkpoint.name}: the model it was trained on, {named}, is not there; name its folder with --base"
        )
    return named


def _base_language_model(
    base: str, hidden_size: int, name: str, tensors_of: Callable[[str], Mapping[str, Any]] = model_tensors
) -> dict[str, Any]:
    """The tensors of the language model under an adapter or projector, once its size is known to fit."""
    folder, gguf_file = split_gguf(base)
    if gguf_file is not None:
        if not Path(base).is_file():
            raise InputError(f"{name}: the model it was trained on, {base}, is not there; name it with --base")
        tensors, config = load_language_model(folder, gguf_file=gguf_file, dtype=torch.float32)
        _check_hidden_size(config.hidden_size, hidden_size, base, name)
        return tensors
    config_dict = identify(base).config
    config_dict = config_dict.get("text_config", config_dict)
    if "hidden_size" in config_dict:
        _check_hidden_size(config_dict["hidden_size"], hidden_size, base, name)
    tensors = split_parts(tensors_of(base)).language_model
    if "embed_tokens.weight" not in tensors:
        raise InputError(f"{base}: its weights hold no embed_tokens.weight, so it is no Llama-like language model")
    _check_hidden_size(tensors["embed_tokens.weight"].shape[1], hidden_size, base, name)
    return tensors


def _hidden_size(checkpoint: Checkpoint) -> int:
    """Of a LLaVA checkpoint's language model, as its config has it."""
    if checkpoint.kind in ("hf", "adapter"):
        return read_config(checkpoint.name).text_config.hidden_size
    return _llava_text_config(checkpoint.config, f"{checkpoint.name}/config.json").hidden_size


def _check_hidden_size(found: int, wanted: int, base: str, name: str) -> None:
    if found != wanted:
        raise InputError(
            f"{name}: was trained on a language model of hidden size {wanted}, but {base} has {found}; "
            "name the right one with --base"
        )


# --- The original LLaVA's format -----------------------------------------------------------------------------------


def _load_llava(
    checkpoint: Checkpoint,
    base: str | Path | None,
    vision_tower: str | None,
    dtype: str | torch.dtype,
    options: dict[str, Any],
    replace_vision_tower: bool,
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    pieces = read_llava(checkpoint, base, vision_tower, dtype, replace_vision_tower=replace_vision_tower)
    model = build(
        pieces.language_model,
        pieces.text_config,
        pieces.projector,
        pieces.tower,
        pieces.processor,
        checkpoint.name,
        dtype=pieces.dtype,
        **pieces.settings,
        **options,
    )
    if checkpoint.kind == "llava_lora":
        model = _apply_llava_lora(model, checkpoint, merge="quantization_config" not in options)
    return model, pieces.processor


@dataclass(frozen=True)
class Pieces:
    """What a checkpoint in the original LLaVA's format holds, as ``build`` takes it.

    Attributes:
        settings: of the ``LlavaConfig``: layer and tokens that it reads, the projector's activation.
    """

    language_model: dict[str, Any]
    text_config: PreTrainedConfig
    projector: dict[str, Any]
    tower: PreTrainedModel
    processor: LlavaProcessor
    dtype: torch.dtype
    settings: dict[str, Any]


def read_llava(
    checkpoint: Checkpoint,
    base: str | Path | None,
    vision_tower: str | None,
    dtype: str | torch.dtype,
    tensors_of: Callable[[str], Mapping[str, Any]] = model_tensors,
    *,
    replace_vision_tower: bool = False,
) -> Pieces:
    """Reads a checkpoint in the original LLaVA's format, but for an adapter's LoRA.

    Args:
        checkpoint: of a ``llava_…`` kind; ``base``, ``vision_tower``, ``dtype`` as in ``load_pretrained``.
        tensors_of: reads the tensors of a full checkpoint: as tensors, or as what stands for them (`LazyTensor`).
            Only the tower's and the projector's are made tensors then.
    """
    name, config = checkpoint.name, checkpoint.config
    source = f"{name}/config.json"
    text_config = _llava_text_config(config, source)
    # Everything that can be known without reading weights comes first.
    tower_name = vision_tower or config["mm_vision_tower"]
    vision_config = _llava_vision_config(config, source, tower_name)
    processor = llava_processor(checkpoint, base, vision_tower)

    if checkpoint.kind == "llava_full":
        parts = split_parts(tensors_of(name))
    else:
        language_model = _base_language_model(named_base(checkpoint, base), text_config.hidden_size, name, tensors_of)
        files = ("mm_projector.bin",) if checkpoint.kind == "llava_projector" else TRAINED_FILES
        trained = split_parts(read_tensors(next(path for file in files if (path := find_file(name, file)))))
        rows = trained.language_model.get("embed_tokens.weight")
        known_rows = language_model["embed_tokens.weight"]
        if rows is not None and rows.shape[0] < known_rows.shape[0]:  # of the new tokens alone, as LLaVA's stage 1 has
            both = [_read(known_rows), rows.to(known_rows.dtype)]
            trained.language_model["embed_tokens.weight"] = torch.cat(both)
        parts = Parts(language_model | trained.language_model, trained.projector, trained.vision_tower)
    projector, act = _llava_projector(config, {key: _read(tensor) for key, tensor in parts.projector.items()}, source)
    _check_projector(projector, vision_config.hidden_size, text_config.hidden_size, name)
    if text_config.tie_word_embeddings:
        parts.language_model.pop("lm_head.weight", None)

    dtype = _resolve_dtype(dtype, parts.language_model)
    own_tower = None
    if not replace_vision_tower:
        own_tower = {key: _read(tensor) for key, tensor in parts.vision_tower.items()}
    if own_tower and vision_tower:
        logger.warning(
            f"{name}: the vision tower's weights inside are used, and of {vision_tower} its config; "
            "--replace_vision_tower would take its weights"
        )
    is_s2 = isinstance(vision_config, S2VisionConfig)
    backbone_config = vision_config.backbone_config if is_s2 else vision_config
    tower = load_vision_backbone(tower_name, backbone_config, dtype, own_tower)
    if is_s2:
        tower = S2VisionModel.wrap(tower, vision_config.scales, feature_layer=vision_config.feature_layer)
    return Pieces(
        parts.language_model,
        text_config,
        projector,
        tower,
        processor,
        dtype,
        {
            "vision_feature_layer": -1 if is_s2 else config.get("mm_vision_select_layer", -2),
            "vision_feature_select_strategy": processor.vision_feature_select_strategy,
            "projector_hidden_act": act,
        },
    )


def llava_processor(
    checkpoint: Checkpoint, base: str | Path | None = None, vision_tower: str | None = None
) -> LlavaProcessor:
    """The processor of a checkpoint in the original LLaVA's format; no weights are read. Arguments as `read_llava`."""
    config, source = checkpoint.config, f"{checkpoint.name}/config.json"
    language_source = checkpoint.name if checkpoint.kind == "llava_full" else named_base(checkpoint, base)
    tower_name = vision_tower or config["mm_vision_tower"]
    vision_config = _llava_vision_config(config, source, tower_name)
    prefix = 0 if isinstance(vision_config, S2VisionConfig) else prefix_tokens(vision_config)
    image_mean, image_std = load_image_statistics(tower_name)
    extra: tuple[str, ...] = (_IM_PATCH_TOKEN,) if config.get("mm_use_im_patch_token", False) else ()
    extra += (IMAGE_START_TOKEN, IMAGE_END_TOKEN) if config.get("mm_use_im_start_end", False) else ()
    return build_processor(
        load_tokenizer(split_gguf(language_source)[0], extra_tokens=extra),
        vision_config,
        image_mean,
        image_std,
        image_aspect_ratio=_llava_aspect_ratio(config, source),
        template=saved_template(checkpoint),
        vision_feature_select_strategy=(
            "full" if isinstance(vision_config, S2VisionConfig) else select_strategy(config, prefix)
        ),
        prefix_tokens=prefix,
    )


def _llava_vision_config(config: dict[str, Any], source: str, tower_name: str) -> Any:
    """Of an S2 tower with the checkpoint's scales, or of the backbone where it has a single one."""
    backbone_config = load_vision_config(tower_name)
    feature = config.get("mm_vision_select_feature", "patch")
    if feature not in ("patch", "cls_patch"):
        raise InputError(f"{source}: mm_vision_select_feature {feature!r} is not known; it is patch or cls_patch")
    scales = _llava_scales(config, source)
    if not scales:
        return backbone_config
    if feature == "cls_patch" and prefix_tokens(backbone_config):
        raise InputError(f"{source}: an S2 tower gives patches alone, so mm_vision_select_feature must be patch")
    layer = config.get("mm_vision_select_layer", -2)
    try:
        return S2VisionConfig(backbone_config=backbone_config, scales=scales, feature_layer=layer)
    except ValueError as error:
        raise InputError(f"{source}: vision tower {tower_name}: {error}") from error


def _llava_text_config(config: dict[str, Any], source: str) -> PreTrainedConfig:
    """The language model's part of LLaVA's flat config."""
    model_type = config["model_type"].removeprefix("llava_")
    other = ("mm_", "tune_", "freeze_", "image_", "s2", "use_mm_", "tokenizer_", "unfreeze_")
    # quantization_config is how QLoRA held its base while training; the base's files are not quantized by it.
    dropped = (
        "quantization_config",
        "model_type",
        "architectures",
        "_name_or_path",
        "transformers_version",
        "torch_dtype",
        "dtype",
    )
    # Settings of generate, which old configs carry and new ones refuse.
    generation = ("max_length", "temperature", "top_p", "top_k", "do_sample", "num_beams", "repetition_penalty")
    settings = {
        key: value
        for key, value in config.items()
        if not key.startswith(other) and key not in dropped and key not in generation
    }
    try:
        return AutoConfig.for_model(model_type, **settings)
    except (ValueError, TypeError) as error:
        raise InputError(f"{source}: language model {model_type!r}: {first_line(error)}") from error


def _llava_scales(config: dict[str, Any], source: str) -> list[int] | None:
    """The S² scales, ascending, or None for a single-scale checkpoint. LLaVA writes them as "336,672,1008"."""
    if not config.get("s2", False):
        return None
    scales = config.get("s2_scales", "336,672,1008")
    try:
        return sorted(int(side) for side in (scales.split(",") if isinstance(scales, str) else scales))
    except (TypeError, ValueError) as error:
        raise InputError(f'{source}: s2_scales {scales!r} should be like "336,672,1008"') from error


def _llava_aspect_ratio(config: dict[str, Any], source: str) -> str:
    ratio = config.get("image_aspect_ratio") or "square"
    if ratio not in ("pad", "square", "resize"):
        raise InputError(f"{source}: image_aspect_ratio {ratio!r} is not supported; it can be pad, square or resize")
    return ratio


def _llava_projector(config: dict[str, Any], tensors: dict[str, Tensor], source: str) -> tuple[dict[str, Tensor], str]:
    """LLaVA's projector as the stock two-layer one, and the activation between its layers.

    A single linear layer is the stock projector with no activation and an identity second layer.
    """
    kind = config.get("mm_projector_type", "linear")
    renamed = {name.removeprefix("0."): tensor for name, tensor in tensors.items()}
    if kind in ("linear", "mlp1x_gelu") and {"weight", "bias"} == set(renamed):
        size = renamed["weight"].shape[0]
        return {
            "linear_1.weight": renamed["weight"],
            "linear_1.bias": renamed["bias"],
            "linear_2.weight": torch.eye(size),
            "linear_2.bias": torch.zeros(size),
        }, "linear"
    if kind == "mlp2x_gelu" and set(tensors) == {"0.weight", "0.bias", "2.weight", "2.bias"}:
        return {f"linear_{1 if name[0] == '0' else 2}{name[1:]}": tensor for name, tensor in tensors.items()}, "gelu"
    if kind in ("linear", "mlp1x_gelu", "mlp2x_gelu"):
        raise InputError(
            f"{source}: mm_projector_type is {kind}, but the projector's tensors are {list_names(tensors) or 'missing'}"
        )
    raise InputError(
        f"{source}: mm_projector_type {kind!r} is not what the stock LLaVA can compute; it can linear and mlp2x_gelu"
    )


def _check_projector(projector: dict[str, Tensor], vision_size: int, text_size: int, name: str) -> None:
    rows, columns = projector["linear_1.weight"].shape
    if columns != vision_size:
        way_out = "check s2_scales and the vision tower"
        if vision_size % columns == 0:
            way_out = (
                "it is a single-scale projector: load it as that (without s2 in config.json), and widen it with "
                "`llava-s2 train … --widen-from`"
            )
        raise InputError(
            f"{name}: the projector takes features {columns} wide, but the vision tower gives {vision_size}; {way_out}"
        )
    if rows != text_size:
        raise InputError(f"{name}: the projector gives {rows} values a token, but the language model takes {text_size}")


def _apply_llava_lora(
    model: LlavaForConditionalGeneration, checkpoint: Checkpoint, *, merge: bool
) -> LlavaForConditionalGeneration:
    """Adds the original LLaVA's LoRA to the language model and to the vision tower.

    LLaVA picks the adapted layers by short names (q_proj …), which the tower has too. It trains with the tower frozen,
    so there the LoRA weights usually are zero, but a checkpoint may hold others and its answers then depend on them.
    """
    name = checkpoint.name
    settings = read_json(str(find_file(name, "adapter_config.json")))
    if settings.get("peft_type", "LORA") != "LORA":
        raise InputError(f"{name}/adapter_config.json: peft_type {settings['peft_type']!r}, but only LORA is supported")
    modules = {module_name for module_name, _ in model.named_modules()}
    tensors = {}
    for key, tensor in adapter_tensors(name).items():
        module, dot, weight = key.removeprefix("base_model.model.").partition(".lora_")
        if "vision_tower." in module:
            inner = module.split("vision_tower.")[-1].removeprefix("vision_model.")
            places = [f"model.vision_tower.{stem}{inner}" for stem in TOWER_STEMS]
            found = [place for place in places if place in modules]
            if not found and isinstance(model.model.vision_tower, S2VisionModel):
                continue  # a block after the feature layer, which the tower does not keep
            module = found[0] if found else module
        elif module.startswith("model."):
            module = "model.language_model." + module.removeprefix("model.")
        tensors["base_model.model." + module + dot + weight] = tensor
    # Named one by one, because LLaVA's short names (q_proj …) would match the vision tower's layers too.
    targets = sorted({key.split(".lora_")[0].removeprefix("base_model.model.") for key in tensors if ".lora_" in key})
    told = settings.get("target_modules")
    if isinstance(told, list) and settings.get("layers_to_transform") is None:
        inside = {place for place in modules if place.startswith("model.language_model.")}
        wanted = {place for place in inside if place.rpartition(".")[2] in told} | set(targets)
        halves = {f"{place}.lora_{half}.weight" for place in wanted for half in "AB"}
        if missing := {half for half in halves if f"base_model.model.{half}" not in tensors}:
            raise InputError(
                f"{name}: the adapter lacks tensors that its adapter_config.json tells of: {list_names(missing)}"
            )
    known = {key: settings[key] for key in LoraConfig.__dataclass_fields__ if key in settings}
    known.pop("base_model_name_or_path", None)  # names a folder, not the model object that PEFT compares it with
    adapted: Any = get_peft_model(model, LoraConfig(**{**known, "target_modules": targets, "inference_mode": True}))
    report: Any = set_peft_model_state_dict(adapted, tensors)
    if report.unexpected_keys:
        raise InputError(
            f"{name}: the adapter holds what the model does not have: {list_names(report.unexpected_keys)}"
        )
    return (adapted.merge_and_unload() if merge else adapted.get_base_model()).eval()


def _read(tensor: Any) -> Tensor:
    return tensor if isinstance(tensor, Tensor) else tensor.read()


def _resolve_dtype(dtype: str | torch.dtype, language_model: dict[str, Any]) -> torch.dtype:
    """What "auto" means: the dtype of the language model's weights."""
    return language_model["embed_tokens.weight"].dtype if dtype == "auto" else torch_dtype(dtype)
