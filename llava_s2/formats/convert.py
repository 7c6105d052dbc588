"""Checkpoints from one form into another, tensor by tensor."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlavaImageProcessorPil,
    SiglipVisionConfig,
)

from llava_s2.errors import InputError
from llava_s2.files import new_folder
from llava_s2.formats.base_record import BaseRecord
from llava_s2.formats.identify import Checkpoint, identify
from llava_s2.formats.lazy_tensors import LazyTensor, lazy_tensors, weight_bytes, write_weights
from llava_s2.formats.llava_writer import (
    ORIGINAL_TOWER,
    Original,
    language_model_rows,
    original_config,
    original_tensors,
    tower_place,
    write_original_files,
)
from llava_s2.formats.load import (
    load_pretrained,
    named_base,
    read_config,
    read_llava,
    saved_processor,
)
from llava_s2.formats.names import split_parts
from llava_s2.formats.native import LlavaContents, cast, grown, write_folder
from llava_s2.model.assemble import generation_config, llava_config, torch_dtype
from llava_s2.model.embedded import resolve_model, resolve_vision_tower
from llava_s2.model.processor import prefix_tokens
from llava_s2.s2 import S2VisionConfig
from llava_s2.towers.load_tower import load_vision_backbone, load_vision_config
from llava_s2.weight_files import find_file, read_tensors

Form = Literal["native", "llava", "hf"]
_ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")


def convert(
    src: str | Path,
    dst: str | Path,
    to: Form = "native",
    *,
    base: str | Path | None = None,
    vision_tower: str | Path | None = None,
    replace_vision_tower: bool = False,
    dtype: str | torch.dtype = "auto",
) -> None:
    """Writes a checkpoint of any kind in another form. A full checkpoint goes through memory a shard at a time.

    Args:
        src: as ``load_pretrained`` takes it. An adapter is merged, for which the model is loaded whole.
        dst: the new folder; must not exist, or be empty. It appears when it is whole.
        to: "native", this project's own: loads here as it is, elsewhere with ``trust_remote_code=True``. "llava", the
            original LLaVA's. "hf", stock transformers' single-scale LLaVA.
        base: what lies under an adapter or projector; for "llava", also where the tokenizer's files are, if ``src``
            does not have them.
        vision_tower, replace_vision_tower: as ``load_pretrained`` takes them.
            For "llava" and "hf" from this project's own form, the
            tower that it was made with: the name to write, and where the blocks are that S2 does not keep.
        dtype: of the new weights; "auto" rounds nothing.

    Raises:
        InputError: ``src`` cannot be read or cannot be had in that form, ``dst`` holds something, or the disk is full.
    """
    if to not in ("native", "llava", "hf"):
        raise InputError(f"--to {to}: not known; use native, llava or hf")
    checkpoint = identify(resolve_model(src))
    name = checkpoint.name
    tower = None if vision_tower is None else resolve_vision_tower(vision_tower)
    if checkpoint.kind == "llm":
        raise InputError(f"{name}: a language model without projector or vision tower, not a LLaVA checkpoint")
    if checkpoint.kind == "hf" and (not replace_vision_tower or to != "native"):
        model = _read_hf(checkpoint)
    elif checkpoint.kind in ("llava_full", "llava_projector"):
        model = _read_llava(checkpoint, base, tower, dtype, replace_vision_tower)
    else:
        model = _load(checkpoint, base, tower, dtype, replace_vision_tower)
    given = None if dtype == "auto" else torch_dtype(dtype)
    if to == "llava":
        _write_llava(model, Path(dst), name, base, vision_tower, given)
    elif to == "hf":
        model = _stock(model, name, tower)
        write_folder(model, model.published_tensors(), Path(dst), given)
    else:
        write_folder(model, model.tensors(), Path(dst), given)


def merge(
    adapter: str | Path,
    dst: str | Path,
    base: str | Path | None = None,
    *,
    vision_tower: str | Path | None = None,
    replace_vision_tower: bool = False,
    dtype: str | torch.dtype = "auto",
) -> None:
    """Makes one plain checkpoint of an adapter (this project's or the original LLaVA's) or projector and its base.

    Args:
        adapter, base, vision_tower, replace_vision_tower: as ``load_pretrained`` takes them.
        dst: the new folder; must not exist, or be empty.
        dtype: of the new weights. "auto" is float32: the sum of two half-precision weights seldom is one itself, so
            any narrower type rounds what was trained away.

    Raises:
        InputError: not an adapter, or what `convert` raises.
    """
    checkpoint = identify(adapter)
    if checkpoint.kind not in ("adapter", "llava_lora", "llava_projector"):
        raise InputError(f"{adapter}: is no adapter but a whole checkpoint, so there is nothing to merge")
    convert(
        adapter,
        dst,
        base=base,
        vision_tower=vision_tower,
        replace_vision_tower=replace_vision_tower,
        dtype="float32" if dtype == "auto" else dtype,
    )


# --- Reading -------------------------------------------------------------------------------------------------------


def _read_hf(checkpoint: Checkpoint) -> LlavaContents:
    name = checkpoint.name
    config = read_config(name)
    processor = saved_processor(name)
    parts = split_parts(lazy_tensors(name))
    if find_file(name, "generation_config.json"):
        generation = GenerationConfig.from_pretrained(name)
    else:
        generation = generation_config(processor, config.text_config)
    original = Original.kept_in(name)
    model = LlavaContents(
        config, processor, generation, parts.language_model, parts.projector, parts.vision_tower, original
    )
    model.check(name)
    return model


def _read_llava(
    checkpoint: Checkpoint,
    base: str | Path | None,
    vision_tower: str | None,
    dtype: str | torch.dtype,
    replace_vision_tower: bool,
) -> LlavaContents:
    name = checkpoint.name
    pieces = read_llava(checkpoint, base, vision_tower, dtype, lazy_tensors, replace_vision_tower=replace_vision_tower)
    language_model = {key: LazyTensor.of(tensor) for key, tensor in pieces.language_model.items()}
    text_config = pieces.text_config
    rows = language_model["embed_tokens.weight"].shape[0]
    text_config.vocab_size = max(rows, len(pieces.processor.tokenizer))
    for key in ("embed_tokens.weight", "lm_head.weight"):
        if key in language_model and rows < text_config.vocab_size:
            language_model[key] = grown(language_model[key], text_config.vocab_size)
    config = llava_config(text_config, pieces.tower.config, pieces.processor, **pieces.settings)
    config.dtype = pieces.dtype
    tower = {key: LazyTensor.of(tensor) for key, tensor in pieces.tower.state_dict().items()}
    projector = {key: LazyTensor.of(tensor) for key, tensor in pieces.projector.items()}
    if dtype != "auto":  # else it keeps its own, which beside a 16-bit base may be float32
        projector = {key: cast(tensor, pieces.dtype) for key, tensor in projector.items()}
    is_full = checkpoint.kind == "llava_full"
    original = Original.of_llava(
        checkpoint.config,
        name if is_full else named_base(checkpoint, base),
        lazy_tensors(name) if is_full else {},
        tower,
    )
    model = LlavaContents(
        config,
        pieces.processor,
        generation_config(pieces.processor, text_config),
        {key: cast(tensor, pieces.dtype) for key, tensor in language_model.items()},
        projector,
        tower,
        original,
    )
    model.check(name)
    return model


def _load(
    checkpoint: Checkpoint,
    base: str | Path | None,
    vision_tower: str | None,
    dtype: str | torch.dtype,
    replace_vision_tower: bool,
) -> LlavaContents:
    """An adapter, merged: adding it up needs the layers, so this model is in memory."""
    if dtype == "auto" and checkpoint.kind != "hf":
        dtype = "float32"  # as in `merge`
    loaded, processor = load_pretrained(
        checkpoint.name, base, vision_tower=vision_tower, replace_vision_tower=replace_vision_tower, dtype=dtype
    )
    parts = split_parts({key: LazyTensor.of(tensor) for key, tensor in loaded.state_dict().items()})
    config: Any = loaded.config
    if config.text_config.tie_word_embeddings:
        parts.language_model.pop("lm_head.weight", None)
    generation: Any = loaded.generation_config
    model = LlavaContents(config, processor, generation, parts.language_model, parts.projector, parts.vision_tower)
    if checkpoint.kind == "adapter":
        under = base or BaseRecord.load(checkpoint.name) or named_base(checkpoint)
        return replace(model, original=Original.kept_in(under.name if isinstance(under, BaseRecord) else str(under)))
    if checkpoint.kind == "llava_lora":
        settings, inside = checkpoint.config, {}
        if _adapts_tower(checkpoint.name):  # so the tower's weights are no longer those of its name
            settings = settings | {"unfreeze_mm_vision_tower": True}
            whole = _whole_tower(model, checkpoint.name, vision_tower or settings["mm_vision_tower"])
            inside = {f"{ORIGINAL_TOWER}{key.removeprefix('vision_model.')}": tensor for key, tensor in whole.items()}
        return replace(
            model, original=Original.of_llava(settings, named_base(checkpoint, base), inside, model.vision_tower)
        )
    return model


def _adapts_tower(name: str) -> bool:
    """Whether LLaVA's LoRA changes the vision tower: its layers have the names that LoRA is put on."""
    path = next(path for file in _ADAPTER_FILES if (path := find_file(name, file)))
    return any("vision_tower" in key and "lora_B" in key and bool(t.any()) for key, t in read_tensors(path).items())


# --- Writing -------------------------------------------------------------------------------------------------------


def _write_llava(
    model: LlavaContents,
    dst: Path,
    source: str,
    base: str | Path | None,
    vision_tower: str | Path | None,
    dtype: torch.dtype | None,
) -> None:
    original = model.original
    if original is None:
        original = Original.of_llava({}, str(base or source), {}, {})
        original = replace(original, files=original.files if base or _has_plain_tokenizer(source) else {})
    rows = language_model_rows(model.config, model.processor, original)
    named = None if vision_tower is None else str(vision_tower)
    config = original_config(model.config, model.processor, original, rows, dtype or model.dtype, named)
    act = model.config.projector_hidden_act
    tensors = original_tensors(model.language_model, model.projector, model.vision_tower, original, rows, act)
    with new_folder(dst, weight_bytes(tensors, dtype)) as folder:
        write_original_files(folder, config, original, source)
        write_weights(folder, tensors, dtype)


def _has_plain_tokenizer(source: str) -> bool:
    """Whether a checkpoint still has the SentencePiece model of its language model."""
    return find_file(source, "tokenizer.model") is not None


def _stock(model: LlavaContents, name: str, vision_tower: str | None) -> LlavaContents:
    """The same single-scale model on a stock vision model, under the names that llava-hf's checkpoints have."""
    config: Any = model.config
    vision: Any = config.vision_config
    tower = model.vision_tower
    processor = model.processor
    if isinstance(vision, S2VisionConfig):
        if len(vision.scales) > 1:
            raise InputError(
                f"{name}: has the scales {vision.scales}; stock transformers computes one scale alone, so use "
                "--to native, which loads with trust_remote_code"
            )
        backbone = vision.backbone_config
        if not isinstance(backbone, (CLIPVisionConfig, SiglipVisionConfig)):
            raise InputError(f"{name}: llava-hf has a CLIP or SigLIP tower, not {backbone.model_type}")
        tower = _whole_tower(model, name, vision_tower)
        config = type(config)(
            **{
                **{key: getattr(config, key) for key in ("text_config", "image_token_index", "image_seq_length")},
                **{key: getattr(config, key) for key in ("projector_hidden_act", "tie_word_embeddings")},
                "vision_config": backbone,
                "vision_feature_layer": vision.feature_layer,
                "vision_feature_select_strategy": "default" if prefix_tokens(backbone) else "full",
            }
        )
        processor.num_additional_image_tokens = prefix_tokens(backbone)
        processor.vision_feature_select_strategy = config.vision_feature_select_strategy
    # Under its stock name, because nobody trusts code of a folder that has none.
    processor.image_processor = LlavaImageProcessorPil(
        **{key: value for key, value in processor.image_processor.to_dict().items() if key != "auto_map"}
    )
    return replace(model, config=config, processor=processor, vision_tower=tower, original=None)


def _whole_tower(model: LlavaContents, name: str, vision_tower: str | None) -> dict[str, LazyTensor]:
    """All blocks of the backbone: those that S2 kept, and the later ones from where the tower came from."""
    config = model.config
    kept = {key.removeprefix("backbone."): tensor for key, tensor in model.vision_tower.items()}
    named = vision_tower
    if named is None and model.original is not None:
        named = model.original.config.get("mm_vision_tower")
    named = named or getattr(config, "mm_vision_tower", None) or config.vision_config.backbone_config._name_or_path
    named = resolve_vision_tower(named) if named else None
    if named is None or find_file(named, "config.json") is None:
        raise InputError(
            f"{name}: the S2 tower keeps only the blocks that it reads, and stock transformers wants all of them; "
            "name the tower that it was made with by --vision_tower"
        )
    found = load_vision_backbone(named, load_vision_config(named), model.dtype).state_dict()
    whole = {key: LazyTensor.of(tensor) for key, tensor in found.items()}
    for key, tensor in kept.items():
        place = tower_place(f"vision_tower.{key}", whole)
        if place is None or whole[place].shape != tensor.shape:
            raise InputError(f"vision tower {named}: not the one that {name} was made with ({key} differs)")
        whole[place] = tensor
    return whole
