"""The native format: a folder that stock transformers loads, written tensor by tensor."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedConfig,
)

from llava_s2.errors import InputError
from llava_s2.files import new_folder
from llava_s2.formats.base_record import BaseRecord, checksum
from llava_s2.formats.identify import identify
from llava_s2.formats.lazy_tensors import LazyTensor, lazy_tensors, weight_bytes, write_weights
from llava_s2.formats.llava_writer import Original
from llava_s2.formats.load import load_pretrained
from llava_s2.formats.names import split_parts
from llava_s2.model.assemble import generation_config, llava_config, new_projector, split_gguf, with_mean_rows
from llava_s2.model.embedded import resolve_language_model, resolve_vision_tower
from llava_s2.model.language_model import embedding_name, fold_head, load_language_model
from llava_s2.model.processor import build_processor
from llava_s2.model.tokenizer import load_tokenizer
from llava_s2.model.widen import widen
from llava_s2.s2 import S2VisionModel
from llava_s2.towers.load_tower import load_image_statistics, load_vision_backbone, tower_config
from llava_s2.weight_files import first_line, list_names


@dataclass(frozen=True)
class LlavaContents:
    """A LLaVA that is not in memory.

    Attributes:
        config, processor, generation_config: transformers' own.
        language_model, projector, vision_tower: tensors under the names of `Parts`.
        original: what its LLaVA-format checkpoint holds beside the model, where it comes from one.
    """

    config: Any
    processor: LlavaProcessor
    generation_config: GenerationConfig
    language_model: dict[str, LazyTensor]
    projector: dict[str, LazyTensor]
    vision_tower: dict[str, LazyTensor]
    original: Original | None = None

    def tensors(self) -> dict[str, LazyTensor]:
        """All of them, under the names that the stock model has."""
        named = {
            ("" if name == "lm_head.weight" else "model.language_model.") + name: tensor
            for name, tensor in self.language_model.items()
        }
        named |= {f"model.multi_modal_projector.{name}": tensor for name, tensor in self.projector.items()}
        return named | {f"model.vision_tower.{name}": tensor for name, tensor in self.vision_tower.items()}

    def published_tensors(self) -> dict[str, LazyTensor]:
        """All of them, under the names of the checkpoints on the hub, which every version of transformers knows."""
        named = {
            "language_model." + ("" if name == "lm_head.weight" else "model.") + name: tensor
            for name, tensor in self.language_model.items()
        }
        named |= {f"multi_modal_projector.{name}": tensor for name, tensor in self.projector.items()}
        return named | {
            f"vision_tower.vision_model.{name.removeprefix('vision_model.')}": tensor
            for name, tensor in self.vision_tower.items()
        }

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self.language_model.values())).dtype

    def check(self, name: str) -> None:
        """Compares names and shapes with those of the stock model that the config makes.

        Raises:
            InputError: they differ; ``name`` is the checkpoint that it names.
        """
        with torch.device("meta"):
            stock = LlavaForConditionalGeneration(self.config)
        wanted = split_parts(stock.state_dict())
        for found, want in ((self.language_model, wanted.language_model), (self.projector, wanted.projector)):
            if self.config.text_config.tie_word_embeddings:
                want.pop("lm_head.weight", None)
                found.pop("lm_head.weight", None)
            if missing := want.keys() - found.keys():
                raise InputError(f"{name}: the weights lack {list_names(missing)}")
            if more := found.keys() - want.keys():
                raise InputError(f"{name}: the weights hold what the config does not tell of: {list_names(more)}")
            for key, tensor in found.items():
                if tensor.shape != tuple(want[key].shape):
                    raise InputError(
                        f"{name}: {key} has the shape {tensor.shape} in the weights, but the config says "
                        f"{tuple(want[key].shape)}"
                    )


def write_folder(
    model: LlavaContents,
    tensors: dict[str, LazyTensor],
    dst: str | Path,
    dtype: torch.dtype | None,
    record: BaseRecord | None = None,
) -> None:
    """Writes transformers' format; the folder appears when it is whole.

    Args:
        tensors: the model's, under the names to be written. dst: a new or empty folder.
        dtype: to convert to; None keeps each tensor's own.
        record: of the folder as an adapter's base, where it is known.
    """
    config = model.config
    config.architectures = ["LlavaForConditionalGeneration"]
    config.dtype = dtype or model.dtype
    for part in (
        config,
        config.text_config,
        config.vision_config,
        getattr(config.vision_config, "backbone_config", None),
    ):
        if part is not None and Path(part._name_or_path).exists():
            part._name_or_path = ""  # a folder of this machine
    with new_folder(dst, weight_bytes(tensors, dtype)) as folder:
        config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
        model.processor.save_pretrained(folder)
        if model.original is not None:
            model.original.save(folder, dtype)
        if record is not None:
            record.save(folder)
        write_weights(folder, tensors, dtype)


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
        "gguf_file": gguf_file,
    }
    llm, gguf_file = split_gguf(resolve_language_model(llm), gguf_file)
    if gguf_file is None and (kind := identify(llm).kind) != "llm":
        raise InputError(f"--llm {llm}: not a language model but a LLaVA ({kind}); --widen_from makes it S²")
    vision_tower = resolve_vision_tower(vision_tower)
    vision_config = tower_config(vision_tower, scales, feature_layer, image_aspect_ratio, resize_output_to_idx)
    processor = build_processor(
        load_tokenizer(llm, gguf_file=gguf_file),
        vision_config,
        *load_image_statistics(vision_tower),
        image_aspect_ratio=image_aspect_ratio,
        template=template,
    )
    language_model, text_config = stored_language_model(llm, gguf_file=gguf_file)
    tower = S2VisionModel.wrap(
        load_vision_backbone(vision_tower, vision_config.backbone_config, torch.float32),
        scales,
        **vision_config.options,
    )
    projector = new_projector(tower.config.hidden_size, text_config.hidden_size)
    language_model = with_token_rows(language_model, text_config, len(processor.tokenizer))
    settings = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full", "projector_hidden_act": "gelu"}
    contents = LlavaContents(
        llava_config(text_config, tower.config, processor, **settings),
        processor,
        generation_config(processor, text_config),
        language_model,
        {name: LazyTensor.of(tensor) for name, tensor in projector.items()},
        {name: LazyTensor.of(tensor) for name, tensor in tower.state_dict().items()},
    )
    contents.check(llm)
    tensors = contents.tensors()
    record = BaseRecord(str(Path(dst).resolve()), checksum(tensors), parts)
    write_folder(contents, tensors, dst, None, record)


def stored_language_model(llm: str, *, gguf_file: str | None = None) -> tuple[dict[str, LazyTensor], PreTrainedConfig]:
    """A language model's tensors as its files hold them, and its config; see ``load_language_model``.

    Raises:
        InputError: it cannot be read, or it does more behind its head than a LLaVA can.
    """
    if gguf_file is None:
        try:
            config = AutoConfig.from_pretrained(llm)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{llm}: not a causal language model ({first_line(error)})") from error
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
                taken["lm_head.weight"] = source if factor == 1 else scaled(source, factor)
        quantized = getattr(config, "quantization_config", None) is not None
        if len(taken) == len(wanted) + (not config.tie_word_embeddings) and not quantized:
            return taken, config
    tensors, config = load_language_model(llm, gguf_file=gguf_file, dtype=_own_dtype(llm, gguf_file))
    return {name: LazyTensor.of(tensor) for name, tensor in tensors.items()}, config


def _own_dtype(llm: str, gguf_file: str | None) -> torch.dtype:
    if gguf_file is not None:
        return torch.float32
    dtype = AutoConfig.from_pretrained(llm).dtype
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def with_token_rows(
    language_model: dict[str, LazyTensor], text_config: PreTrainedConfig, vocab_size: int
) -> dict[str, LazyTensor]:
    """``add_token_rows`` for tensors that are not in memory."""
    embedding = embedding_name(text_config)
    rows = text_config.vocab_size = language_model[embedding].shape[0]
    if rows >= vocab_size:
        return language_model
    text_config.vocab_size = vocab_size
    new = {
        name: grown(language_model[name], vocab_size)
        for name in (embedding, "lm_head.weight")
        if name in language_model
    }
    return language_model | new


def grown(tensor: LazyTensor, rows: int) -> LazyTensor:
    """The tensor with mean rows added at its end, see ``with_mean_rows``."""
    return LazyTensor((rows, *tensor.shape[1:]), tensor.dtype, lambda: with_mean_rows(tensor.read(), rows))


def cast(tensor: LazyTensor, dtype: torch.dtype) -> LazyTensor:
    """The tensor in another dtype."""
    return LazyTensor(tensor.shape, dtype, lambda: tensor.read().to(dtype))


def scaled(tensor: LazyTensor, factor: float) -> LazyTensor:
    """The tensor times a number."""
    return LazyTensor(tensor.shape, tensor.dtype, lambda: tensor.read() * factor)


def create_widened(
    dst: str | Path,
    source: str | Path,
    scales: list[int],
    *,
    base: str | None = None,
    vision_tower: str | None = None,
    dtype: str = "auto",
) -> None:
    """Writes the S² LLaVA that a single-scale one becomes, as a folder in the native format.

    Args:
        dst: the new folder; must not exist, or be empty.
        source, base, vision_tower, dtype: as ``load_pretrained`` takes them; the model is in memory.
        scales: see `widen`.

    Raises:
        InputError: see `widen` and ``load_pretrained``.
    """
    model, processor = widen(*load_pretrained(source, base, vision_tower=vision_tower, dtype=dtype), scales)
    save_native(model, processor, dst)


def save_native(model: LlavaForConditionalGeneration, processor: LlavaProcessor, dst: str | Path) -> None:
    """Writes a model in memory and its processor as a new folder, which appears when it is whole."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    with new_folder(dst, size) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
