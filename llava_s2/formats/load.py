"""``load_pretrained``: every kind of LLaVA checkpoint as the stock ``LlavaForConditionalGeneration``."""

from pathlib import Path
from typing import Any

import torch
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from llava_s2.errors import InputError
from llava_s2.formats.adapters import apply_adapter
from llava_s2.formats.base_record import BaseRecord, check_base, find_base
from llava_s2.formats.configs import has_processor, saved_processor
from llava_s2.formats.identify import Checkpoint, identify
from llava_s2.formats.llava_lora import apply_llava_lora
from llava_s2.formats.llava_reader import read_llava
from llava_s2.formats.native import load_native
from llava_s2.formats.old_adapters import load_old_adapter
from llava_s2.model.assemble import assemble, split_gguf
from llava_s2.model.embedded import NAME as EMBEDDED
from llava_s2.model.embedded import resolve_language_model, resolve_vision_tower
from llava_s2.model.processor import set_template
from llava_s2.model.quantizations import INT8, check_int8_is_possible, quantization_config
from llava_s2.model.templates import OWN, find_template
from llava_s2.s2.int8 import quantize_linears

Loaded = tuple[LlavaForConditionalGeneration, LlavaProcessor]


def load_pretrained(
    path: str | Path,
    base: str | Path | None = None,
    *,
    vision_tower: str | Path | None = None,
    replace_vision_tower: bool = False,
    dtype: str | torch.dtype = "auto",
    device_map: str | dict[str, Any] | None = None,
    quantization: str | None = None,
    template: str | None = None,
) -> Loaded:
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
        template: the chat template, see ``find_template``, in place of the checkpoint's own.

    Returns:
        The model, in eval mode, adapters merged (with "4bit" and "8bit": attached), and its processor.

    Raises:
        InputError: the files do not make up a checkpoint; the message names the file and the way out.

    Example:
        >>> model, processor = load_pretrained("bfshi/llava-v1.5-7b-s2-lora", "lmsys/vicuna-7b-v1.5", dtype="bfloat16")
    """
    checkpoint = identify(path)
    if replace_vision_tower and vision_tower is None:
        raise InputError("--replace_vision_tower: name the tower to use by --vision_tower")
    if template not in (None, OWN):  # before any weight is loaded
        find_template(str(template))
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
    model, processor = _load(checkpoint, base, tower, replace_vision_tower, dtype, options, template)
    if template is not None:
        set_template(processor, template)
    if quantization in INT8:
        quantize_linears(model.model.language_model if quantization == "int8" else model.model)
    return model, processor


def _load(
    checkpoint: Checkpoint,
    base: str | Path | None,
    vision_tower: str | None,
    replace_vision_tower: bool,
    dtype: str | torch.dtype,
    options: dict[str, Any],
    template: str | None = None,
) -> Loaded:
    """A LLaVA by the format it is in."""
    name = checkpoint.name
    if checkpoint.kind == "hf":
        return load_native(name, vision_tower, replace_vision_tower, dtype, options, template)
    if checkpoint.kind == "adapter" and checkpoint.config:
        return load_old_adapter(checkpoint, base, vision_tower, dtype, options, load_pretrained)
    if checkpoint.kind == "adapter":
        return _load_adapter(name, base, vision_tower, dtype, options)
    contents = read_llava(
        checkpoint, base, vision_tower, dtype, replace_vision_tower=replace_vision_tower, template=template
    )
    model = contents.build(name, **options)
    if checkpoint.kind == "llava_lora":
        model = apply_llava_lora(model, checkpoint, merge="quantization_config" not in options)
    return model, contents.processor


def _load_adapter(
    name: str,
    base: str | Path | None,
    vision_tower: str | None,
    dtype: str | torch.dtype,
    options: dict[str, Any],
) -> Loaded:
    """A PEFT adapter of a LLaVA, whoever trained it."""
    record = BaseRecord.load(name)
    place = find_base(name, record) if base is None else str(base)
    if isinstance(place, str) and _is_language_model(place, record):
        if record is None or record.parts is None:
            raise InputError(
                f"{name}: {place} is a language model, but the adapter stands on a LLaVA; name that by --base"
            )
        place = {**record.parts, "llm": place}
    if isinstance(place, dict):  # the base is made again of its parts
        parts = {**place, "vision_tower": vision_tower or place["vision_tower"]}
        place = f"{parts['llm']} with {parts['vision_tower']}"
        is_gguf = parts["gguf_file"] or split_gguf(resolve_language_model(parts["llm"]))[1]
        model, processor = assemble(**parts, dtype="float32" if is_gguf and dtype == "auto" else dtype, **options)
        check_base(name, record, place, model)
    else:
        stored = identify(place)
        reads_files = "quantization_config" in options and stored.kind == "hf"
        if reads_files:  # quantized weights have another checksum
            check_base(name, record, place, None)
        model, processor = _load(stored, None, vision_tower, False, dtype, options)
        if not reads_files:
            check_base(name, record, place, model)
    if has_processor(name):
        processor = saved_processor(name)
    return apply_adapter(model, name, options), processor


def _is_language_model(name: str, record: BaseRecord | None) -> bool:
    """Whether a base is named that is a language model alone. ``embedded`` is one where parts are recorded."""
    if name == EMBEDDED:
        return record is not None and record.parts is not None
    return name.endswith(".gguf") or identify(name).kind == "llm"
