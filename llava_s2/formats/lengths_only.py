"""A processor to count tokens with, from a checkpoint of any kind, without its weights."""

from types import SimpleNamespace
from typing import Any

from transformers import LlavaProcessor

from llava_s2.formats.identify import identify
from llava_s2.formats.load import checkpoint_processor
from llava_s2.model.assemble import split_gguf
from llava_s2.model.embedded import resolve_language_model, resolve_model
from llava_s2.model.processor import build_processor
from llava_s2.model.tokenizer import load_tokenizer

# LLaVA-1.5's tower: 576 tokens, and as many with S2 whatever the scales.
_LLAVA_TOWER: Any = SimpleNamespace(image_size=336, patch_size=14)


def processor_for_lengths(
    model: str,
    base: str | None = None,
    *,
    vision_tower: str | None = None,
    vision_config: Any = None,
    gguf_file: str | None = None,
) -> LlavaProcessor:
    """The processor of a LLaVA, or for a language model one with its tokenizer; it counts tokens, and no more.

    Args:
        model: folder or hub id of any checkpoint, a GGUF file, or ``embedded``.
        base, vision_tower: of a checkpoint in the original LLaVA's format, where it does not name what is there.
        vision_config: of the tower that a language model is to see with; without it an image is LLaVA-1.5's 576 tokens.
        gguf_file: the GGUF file's name in the folder ``model``.

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
    tokenizer = load_tokenizer(name, gguf_file=gguf_file)
    tower: Any = vision_config or _LLAVA_TOWER
    mode = {True: "keep", "dynamic": "dynamic"}.get(getattr(tower, "keep_aspect", False), "pad")
    return build_processor(tokenizer, tower, [0.5] * 3, [0.5] * 3, image_aspect_ratio=mode)
