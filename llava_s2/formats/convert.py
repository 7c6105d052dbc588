"""Checkpoints from one form into another, tensor by tensor."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import CLIPVisionConfig, LlavaImageProcessorPil, SiglipVisionConfig

from llava_s2.errors import InputError
from llava_s2.formats.adapters import adapter_tensors
from llava_s2.formats.base_record import BaseRecord, named_base
from llava_s2.formats.contents import LlavaContents
from llava_s2.formats.identify import Checkpoint, identify
from llava_s2.formats.lazy_tensors import LazyTensor, lazily, lazy_tensors
from llava_s2.formats.llava_reader import read_llava
from llava_s2.formats.llava_source import SourceMetadata
from llava_s2.formats.llava_writer import write_llava
from llava_s2.formats.load import load_pretrained
from llava_s2.formats.lora_alone import write_lora_alone
from llava_s2.formats.native import read_native, with_tower, write_native
from llava_s2.formats.tensor_names import full_name, tower_place
from llava_s2.model.assemble import torch_dtype
from llava_s2.model.embedded import resolve_vision_tower
from llava_s2.model.processor import prefix_tokens
from llava_s2.s2 import S2VisionConfig
from llava_s2.towers.load_tower import load_vision_backbone, load_vision_config
from llava_s2.weight_files import find_file

Form = Literal["native", "llava", "hf", "lora"]


def convert(
    src: str | Path,
    dst: str | Path,
    to: Form = "native",
    *,
    base: str | Path | None = None,
    vision_tower: str | Path | None = None,
    replace_vision_tower: bool = False,
    dtype: str | torch.dtype = "auto",
    template: str | None = None,
) -> None:
    """Writes a checkpoint of any kind in another form. A full checkpoint goes through memory a shard at a time.

    Args:
        src: as ``load_pretrained`` takes it. An adapter is merged, for which the model is loaded whole.
        dst: the new folder; must not exist, or be empty. It appears when it is whole.
        to: "native", this project's own: loads here as it is, elsewhere with ``trust_remote_code=True``. "llava", the
            original LLaVA's. "hf", stock transformers' single-scale LLaVA. "lora", see `write_lora_alone`, for which
            ``base`` is the only other argument.
        base: what lies under an adapter or projector; for "llava", also where the tokenizer's files are, if ``src``
            does not have them.
        vision_tower, replace_vision_tower: as ``load_pretrained`` takes them.
            For "llava" and "hf" from this project's own form, the
            tower that it was made with: the name to write, and where the blocks are that S2 does not keep.
        dtype: of the new weights; "auto" rounds nothing.
        template: as ``load_pretrained`` takes it.

    Raises:
        InputError: ``src`` cannot be read or has no such form, ``dst`` holds something, or the disk is full.
    """
    if to == "lora":
        if vision_tower is not None or dtype != "auto" or template is not None:
            raise InputError("--to lora: writes the adapter's LoRA as it is; leave all but --base out")
        write_lora_alone(src, dst, base)
        return
    if to not in ("native", "llava", "hf"):
        raise InputError(f"--to {to}: not known; use native, llava, hf or lora")
    checkpoint = identify(src)
    name = checkpoint.name
    tower = None if vision_tower is None else resolve_vision_tower(vision_tower)
    if checkpoint.kind == "llm":
        raise InputError(f"{name}: a language model without projector or vision tower, not a LLaVA checkpoint")
    model, source = _read(checkpoint, base, tower, replace_vision_tower and to == "native", dtype, template)
    given = None if dtype == "auto" else torch_dtype(dtype)
    if to == "llava":
        source = source or _source_of_files(name, base)
        write_llava(model, source, Path(dst), name, None if vision_tower is None else str(vision_tower), given)
    elif to == "hf":
        write_native(_single_scale(model, source, name, tower), dst, given, names="hub")
    else:
        write_native(model, dst, given, source=source)


def merge(
    adapter: str | Path,
    dst: str | Path,
    base: str | Path | None = None,
    *,
    vision_tower: str | Path | None = None,
    replace_vision_tower: bool = False,
    dtype: str | torch.dtype = "auto",
    template: str | None = None,
) -> None:
    """Makes one plain checkpoint of an adapter (this project's or the original LLaVA's) or projector and its base.

    Args:
        adapter, base, vision_tower, replace_vision_tower, template: as ``load_pretrained`` takes them.
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
        template=template,
    )


def _read(
    checkpoint: Checkpoint,
    base: str | Path | None,
    vision_tower: str | None,
    replace_vision_tower: bool,
    dtype: str | torch.dtype,
    template: str | None,
) -> tuple[LlavaContents, SourceMetadata | None]:
    """A LLaVA of any kind, and what its LLaVA-format checkpoint holds beside it, where it comes from one."""
    name = checkpoint.name
    if checkpoint.kind == "hf":
        model = read_native(name, template)
        if replace_vision_tower and vision_tower is not None:
            model = with_tower(model, vision_tower, None if dtype == "auto" else torch_dtype(dtype))
        model.check(name)
        return model, SourceMetadata.kept_in(name)
    if checkpoint.kind in ("llava_full", "llava_projector"):
        model = read_llava(
            checkpoint, base, vision_tower, dtype, replace_vision_tower=replace_vision_tower, template=template
        )
        model.check(name)
        is_full = checkpoint.kind == "llava_full"
        tokenizer, stored = (name, lazy_tensors(name)) if is_full else (named_base(checkpoint, base), {})
        return model, SourceMetadata.of_llava(checkpoint.config, tokenizer, stored, model.tensors.vision_tower)

    # An adapter is added up layer by layer, so this model is in memory.
    merged, processor = load_pretrained(
        name,
        base,
        vision_tower=vision_tower,
        replace_vision_tower=replace_vision_tower,
        dtype="float32" if dtype == "auto" else dtype,  # as in `merge`
        template=template,
    )
    model = LlavaContents.in_memory(merged, processor)
    if checkpoint.kind == "adapter":
        under = base or BaseRecord.load(name) or named_base(checkpoint)
        return model, SourceMetadata.kept_in(under.name if isinstance(under, BaseRecord) else str(under))
    config, inside = checkpoint.config, {}
    if _adapts_tower(name):  # so the tower's weights are no longer those of its name
        config = config | {"unfreeze_mm_vision_tower": True}
        whole = _whole_tower(model, None, name, vision_tower or config["mm_vision_tower"])
        inside = {full_name("vision_tower", key, "llava"): tensor for key, tensor in whole.items()}
    return model, SourceMetadata.of_llava(config, named_base(checkpoint, base), inside, model.tensors.vision_tower)


def _adapts_tower(name: str) -> bool:
    """Whether LLaVA's LoRA changes the vision tower: its layers have the names that LoRA is put on."""
    stored = adapter_tensors(name)
    return any("vision_tower" in key and "lora_B" in key and bool(t.any()) for key, t in stored.items())


def _source_of_files(name: str, base: str | Path | None) -> SourceMetadata:
    """For a model that never was in LLaVA's format: the files of its language model's tokenizer, where they are."""
    place = str(base or name)
    if base is None and find_file(name, "tokenizer.model") is None:  # the saved tokenizer is no longer SentencePiece's
        return SourceMetadata()
    return SourceMetadata.of_llava({}, place, {}, {})


def _single_scale(
    model: LlavaContents, source: SourceMetadata | None, name: str, vision_tower: str | None
) -> LlavaContents:
    """The same single-scale model on a stock vision model, which has all of its blocks."""
    config: Any = model.config
    vision: Any = config.vision_config
    tensors = model.tensors
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
        tensors = replace(tensors, vision_tower=_whole_tower(model, source, name, vision_tower))
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
    return replace(model, config=config, processor=processor, tensors=tensors)


def _whole_tower(
    model: LlavaContents, source: SourceMetadata | None, name: str, vision_tower: str | None
) -> dict[str, LazyTensor]:
    """All blocks of the backbone: those that S2 kept, and the later ones from where the tower came from."""
    config = model.config
    kept = {key.removeprefix("backbone."): tensor for key, tensor in model.tensors.vision_tower.items()}
    named = vision_tower
    if named is None and source is not None:
        named = source.config.get("mm_vision_tower")
    named = named or getattr(config, "mm_vision_tower", None) or config.vision_config.backbone_config._name_or_path
    named = resolve_vision_tower(named) if named else None
    if named is None or find_file(named, "config.json") is None:
        raise InputError(
            f"{name}: the S2 tower keeps only the blocks that it reads, and stock transformers wants all of them; "
            "name the tower that it was made with by --vision_tower"
        )
    found = load_vision_backbone(named, load_vision_config(named), model.dtype).state_dict()
    whole = lazily(found)
    for key, tensor in kept.items():
        place = tower_place(key, whole)
        if place is None or whole[place].shape != tensor.shape:
            raise InputError(f"vision tower {named}: not the one that {name} was made with ({key} differs)")
        whole[place] = tensor
    return whole
