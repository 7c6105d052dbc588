"""What a checkpoint of any kind says of itself without its weights: its config, scales, processor and chat template."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from transformers import AutoConfig, LlavaProcessor, PreTrainedConfig

from llava_s2.errors import InputError
from llava_s2.formats.base_record import BaseRecord, find_base, named_base
from llava_s2.formats.identify import Checkpoint, identify
from llava_s2.formats.llava_config import LlavaSettings, llava_template
from llava_s2.model.assemble import split_gguf
from llava_s2.model.embedded import resolve_language_model, resolve_model
from llava_s2.model.processor import build_processor, load_processor, prefix_tokens, set_template
from llava_s2.model.templates import IMAGE_MARKERS, IMAGE_START_TOKEN, find_template
from llava_s2.model.tokenizer import check_eos, load_tokenizer
from llava_s2.s2 import S2VisionConfig
from llava_s2.towers.load_tower import load_image_statistics, load_vision_config
from llava_s2.weight_files import find_file, first_line

_IM_PATCH_TOKEN = "<im_patch>"
# LLaVA-1.5's tower: 576 tokens, and as many with S2 whatever the scales.
_LLAVA_TOWER: Any = SimpleNamespace(image_size=336, patch_size=14)
# Of LLaVA's flat config.json, what is not the language model's.
_NOT_OF_LANGUAGE_MODEL = ("mm_", "tune_", "freeze_", "image_", "s2", "use_mm_", "tokenizer_", "unfreeze_")
_DROPPED = {
    # How QLoRA held its base while training; the base's files are not quantized by it.
    *("quantization_config", "model_type", "architectures", "_name_or_path", "transformers_version"),
    *("torch_dtype", "dtype", "version", "conv_version"),
    # Settings of generate, which old configs carry and new ones refuse.
    *("max_length", "temperature", "top_p", "top_k", "do_sample", "num_beams", "repetition_penalty"),
}


def read_config(name: str) -> Any:  # a LlavaConfig; its declared fields may be None, which they are not here
    """The config of a checkpoint in transformers' format."""
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # transformers' checks of a config have errors of their own
        raise InputError(f"{name}/config.json: {' '.join(str(error).split())[:300]}") from error


def llava_text_config(checkpoint: Checkpoint) -> PreTrainedConfig:
    """The language model's part of LLaVA's flat config.json.

    Raises:
        InputError: transformers knows no such language model.
    """
    model_type = checkpoint.config["model_type"].removeprefix("llava_")
    settings = {
        key: value
        for key, value in checkpoint.config.items()
        if not key.startswith(_NOT_OF_LANGUAGE_MODEL) and key not in _DROPPED
    }
    try:
        return AutoConfig.for_model(model_type, **settings)
    except Exception as error:  # as in read_config
        message = f"language model {model_type!r}: {' '.join(str(error).split())[:300]}"
        raise InputError(f"{checkpoint.name}/config.json: {message}") from error


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
    return checkpoint_config(identify(place))


def own_scales(name: str, vision_tower: str | None = None) -> list[int]:
    """The image sides, in pixels, that a LLaVA of any kind sees."""
    checkpoint = identify(name)
    if checkpoint.kind not in ("hf", "adapter"):
        settings = LlavaSettings.read(checkpoint.config, f"{checkpoint.name}/config.json")
        tower: Any = None if settings.scales else load_vision_config(vision_tower or settings.vision_tower)
        return settings.scales or [tower.image_size]
    if not checkpoint.config:
        place = find_base(checkpoint.name, BaseRecord.load(checkpoint.name))
        return list(place["scales"]) if isinstance(place, dict) else own_scales(place)
    vision = read_config(checkpoint.name).vision_config
    return list(getattr(vision, "scales", [vision.image_size]))


def checkpoint_text_config(checkpoint: Checkpoint) -> Any:
    """The language model's config of a LLaVA of any kind; errors as of `checkpoint_config`."""
    if checkpoint.kind.startswith("llava"):
        return llava_text_config(checkpoint)
    return checkpoint_config(checkpoint).text_config


def llava_vision_config(settings: LlavaSettings, source: str, tower_name: str) -> Any:
    """Of an S2 tower with the scales of a LLaVA-format checkpoint, or of the backbone where it has a single one.

    Raises:
        InputError: the tower is not there, or not one for these scales.
    """
    backbone_config = load_vision_config(tower_name)
    if not settings.scales:
        return backbone_config
    if settings.takes_cls and prefix_tokens(backbone_config):
        raise InputError(f"{source}: an S2 tower gives patches alone, so mm_vision_select_feature must be patch")
    try:
        return S2VisionConfig(
            backbone_config=backbone_config, scales=settings.scales, feature_layer=settings.feature_layer
        )
    except ValueError as error:
        raise InputError(f"{source}: vision tower {tower_name}: {error}") from error


def llava_processor(
    checkpoint: Checkpoint,
    base: str | Path | None = None,
    vision_tower: str | None = None,
    template: str | None = None,
) -> LlavaProcessor:
    """The processor of a checkpoint in the original LLaVA's format. Arguments as of ``load_pretrained``."""
    source = f"{checkpoint.name}/config.json"
    settings = LlavaSettings.read(checkpoint.config, source)
    language_source = checkpoint.name if checkpoint.kind == "llava_full" else named_base(checkpoint, base)
    tower_name = vision_tower or settings.vision_tower
    vision_config = llava_vision_config(settings, source, tower_name)
    prefix = 0 if settings.scales else prefix_tokens(vision_config)
    extra: tuple[str, ...] = (_IM_PATCH_TOKEN,) if settings.patch_token else ()
    extra += IMAGE_MARKERS if settings.image_markers else ()
    tokenizer = load_tokenizer(split_gguf(language_source)[0], extra_tokens=extra)
    names = [checkpoint.name, language_source]
    return build_processor(
        tokenizer,
        vision_config,
        *load_image_statistics(tower_name),
        image_aspect_ratio=settings.image_aspect_ratio,
        template=llava_template(checkpoint.config, names, tokenizer.chat_template, template),
        vision_feature_select_strategy=settings.select_strategy(prefix),
        prefix_tokens=prefix,
    )


def saved_template(checkpoint: Checkpoint, base: str | Path | None = None) -> str:
    """The chat template (Jinja text) that ``load_pretrained`` gives a LLaVA's processor, if none is asked for.

    Raises:
        InputError: no processor can be read there, or a LLaVA-format checkpoint does not say which template it has.
    """
    if checkpoint.kind in ("hf", "adapter"):
        return str(checkpoint_processor(checkpoint).chat_template)
    source = checkpoint.name if checkpoint.kind == "llava_full" else named_base(checkpoint, base)
    own = load_tokenizer(split_gguf(source)[0]).chat_template
    return find_template(llava_template(checkpoint.config, [checkpoint.name, source], own), own)


def has_image_markers(checkpoint: Checkpoint, base: str | Path | None = None) -> bool:
    """Whether a LLaVA of any kind has every image between two tokens of its own (``mm_use_im_start_end``)."""
    if checkpoint.kind.startswith("llava"):
        return LlavaSettings.read(checkpoint.config, f"{checkpoint.name}/config.json").image_markers
    return IMAGE_START_TOKEN in saved_template(checkpoint, base)


def saved_processor(name: str, template: str | None = None) -> LlavaProcessor:
    """The processor of a checkpoint in transformers' format.

    Args:
        template: asked for in place of its own, see ``find_template``.

    Raises:
        InputError: there is none; or it has no chat template, and neither its tokenizer nor its model says which.
    """
    try:
        processor = load_processor(name)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{name}: no processor could be read there ({first_line(error)})") from error
    check_eos(processor.tokenizer, name)
    if processor.patch_size is None:  # checkpoints older than transformers 4.46
        config = read_config(name)
        processor.patch_size = config.vision_config.patch_size
        processor.vision_feature_select_strategy = config.vision_feature_select_strategy
        processor.num_additional_image_tokens = prefix_tokens(config.vision_config)
    if template is None and processor.chat_template is None:  # as in LLaVA-1.5's first checkpoints
        text = read_config(name).text_config
        known = {"model_type": f"llava_{text.model_type}", "vocab_size": text.vocab_size}
        template = llava_template(known, [name], processor.tokenizer.chat_template)
    if template is not None:
        set_template(processor, template)
    return processor


def has_processor(name: str) -> bool:
    """Whether a folder or hub id has a processor of its own, as an adapter may."""
    return any(find_file(name, file) for file in ("processor_config.json", "preprocessor_config.json"))


def checkpoint_processor(
    checkpoint: Checkpoint, base: str | Path | None = None, vision_tower: str | None = None
) -> LlavaProcessor:
    """The processor of a checkpoint of any kind but a bare language model; an adapter may lack its own."""
    if checkpoint.kind.startswith("llava"):
        return llava_processor(checkpoint, base, vision_tower)
    if checkpoint.kind == "hf" or has_processor(checkpoint.name):
        return saved_processor(checkpoint.name)
    place = find_base(checkpoint.name, BaseRecord.load(checkpoint.name)) if base is None else str(base)
    if isinstance(place, dict):
        raise InputError(f"{checkpoint.name}: no processor could be read there, and its base is not a folder")
    return checkpoint_processor(identify(place))


def processor_for_lengths(
    model: str,
    base: str | None = None,
    *,
    vision_tower: str | None = None,
    vision_config: Any = None,
    gguf_file: str | None = None,
    extra_tokens: tuple[str, ...] = (),
) -> LlavaProcessor:
    """The processor of a LLaVA, or for a language model one with its tokenizer; it counts tokens, and no more.

    Args:
        model: folder or hub id of any checkpoint, a GGUF file, or ``embedded``.
        base, vision_tower: of a checkpoint in the original LLaVA's format, where it does not name what is there.
        vision_config: of the tower that a language model is to see with; without it an image is LLaVA-1.5's 576 tokens.
        gguf_file: the GGUF file's name in the folder ``model``.
        extra_tokens: that a language model's tokenizer is to have too.

    Raises:
        InputError: no tokenizer or processor can be read there.
    """
    if vision_config is None:
        model = resolve_model(model)
    name, gguf_file = split_gguf(resolve_language_model(model), gguf_file)
    if gguf_file is None:
        checkpoint = identify(name)
        if checkpoint.kind != "llm":
            return checkpoint_processor(checkpoint, base, vision_tower)
    tokenizer = load_tokenizer(name, gguf_file=gguf_file, extra_tokens=extra_tokens)
    tower: Any = vision_config or _LLAVA_TOWER
    mode = {True: "keep", "dynamic": "dynamic"}.get(getattr(tower, "keep_aspect", False), "pad")
    return build_processor(tokenizer, tower, [0.5] * 3, [0.5] * 3, image_aspect_ratio=mode)
