"""A folder in the native format, made of a language model and a vision tower, or of a single-scale LLaVA."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedConfig,
)

from llava_s2.errors import InputError
from llava_s2.formats.base_record import BaseRecord, checksum
from llava_s2.formats.contents import LlavaContents
from llava_s2.formats.identify import identify
from llava_s2.formats.lazy_tensors import LazyTensor, lazily, lazy_tensors
from llava_s2.formats.load import load_pretrained
from llava_s2.formats.native import write_native
from llava_s2.model.assemble import contents_of_parts, split_gguf
from llava_s2.model.embedded import resolve_language_model
from llava_s2.model.language_model import embedding_name, fold_head, load_language_model, read_language_config
from llava_s2.model.widen import widen


def create_native(
    dst: str | Path,
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
) -> None:
    """Writes a LLaVA-S² whose projector is yet to be trained, from a language model and a tower.

    The language model goes through memory a shard at a time, where its files hold the tensors that transformers loads;
    otherwise (GGUF, mixtures of experts, whose tensors are put together) it is loaded first.

    Args:
        dst: the new folder; must not exist, or be empty. It appears when it is whole.
        llm, vision_tower, scales and the others: as of ``assemble``. Each part keeps the dtype that it has.

    Raises:
        InputError: parts that cannot be read or do not fit together, or ``dst`` holds something.
    """
    parts = {
        "llm": str(llm),
        "vision_tower": str(vision_tower),
        "scales": list(scales),
        "feature_layer": feature_layer,
        "template": template,
        "image_aspect_ratio": image_aspect_ratio,
        "resize_output_to_idx": resize_output_to_idx,
        "projector_type": projector_type,
        "gguf_file": gguf_file,
    }
    folder, file = split_gguf(resolve_language_model(llm), gguf_file)
    if file is None and (kind := identify(folder).kind) != "llm":
        raise InputError(f"--llm {llm}: not a language model but a LLaVA ({kind}); --widen_from makes it S²")
    contents = contents_of_parts(
        stored_language_model,
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
    contents.check(str(llm))
    record = BaseRecord(str(Path(dst).resolve()), checksum(contents.tensors.named("transformers")), parts)
    write_native(contents, dst, record=record)


def create_widened(dst: str | Path, source: str | Path, scales: list[int], **given: Any) -> None:
    """Writes the S² LLaVA that a single-scale one becomes, as a folder in the native format.

    Args:
        dst: the new folder; must not exist, or be empty.
        source: the single-scale LLaVA, which is loaded into memory. given: arguments of ``load_pretrained`` for it.
        scales: see `widen`.

    Raises:
        InputError: see `widen` and ``load_pretrained``.
    """
    model, processor = widen(*load_pretrained(source, **given), scales)
    save_native(model, processor, dst)


def save_native(model: LlavaForConditionalGeneration, processor: LlavaProcessor, dst: str | Path) -> None:
    """Writes a model in memory and its processor as a new folder, which appears when it is whole."""
    write_native(LlavaContents.in_memory(model, processor), dst)


def stored_language_model(llm: str, *, gguf_file: str | None = None) -> tuple[dict[str, LazyTensor], PreTrainedConfig]:
    """A language model's tensors as its files hold them, and its config; see ``load_language_model``.

    Raises:
        InputError: it cannot be read, or it does more behind its head than a LLaVA can.
    """
    if gguf_file is None:
        config = read_language_config(llm)
        is_tied = config.tie_word_embeddings
        factor = fold_head(config, llm)
        with torch.device("meta"):
            whole: Any = AutoModelForCausalLM.from_config(config)
        prefix = whole.base_model_prefix + "."
        wanted = {name: tuple(tensor.shape) for name, tensor in whole.base_model.state_dict().items()}
        head = next(
            n for n, p in whole.named_parameters(remove_duplicate=False) if p is whole.get_output_embeddings().weight
        )
        stored = lazy_tensors(llm)
        found = {name.removeprefix(prefix): tensor for name, tensor in stored.items()}
        taken = {name: found[name] for name in wanted if name in found and found[name].shape == wanted[name]}
        if not config.tie_word_embeddings:
            source = found.get(embedding_name(config)) if is_tied else stored.get(head)
            if source is not None:
                taken["lm_head.weight"] = source if factor == 1 else source.scaled(factor)
        quantized = getattr(config, "quantization_config", None) is not None
        if len(taken) == len(wanted) + (not config.tie_word_embeddings) and not quantized:
            return taken, config
    tensors, config = load_language_model(llm, gguf_file=gguf_file, dtype=_own_dtype(llm, gguf_file))
    return lazily(tensors), config


def _own_dtype(llm: str, gguf_file: str | None) -> torch.dtype:
    if gguf_file is not None:
        return torch.float32
    dtype = read_language_config(llm).dtype
    return dtype if isinstance(dtype, torch.dtype) else torch.float32
