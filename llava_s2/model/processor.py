"""The stock ``LlavaProcessor`` for a vision tower: LLaVA's image preparation, tokens an image, and a chat template."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from transformers import (
    AutoProcessor,
    LlavaImageProcessor,
    LlavaProcessor,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

from llava_s2.errors import InputError
from llava_s2.model.templates import end_of_turn, find_template
from llava_s2.model.tokenizer import pad_left
from llava_s2.s2.backbones import geometry
from llava_s2.s2.image_processor import S2ImageProcessor

ASPECT_RATIOS = ("pad", "square", "resize", "keep", "dynamic")


def build_processor(
    tokenizer: PreTrainedTokenizerFast,
    vision_config: PreTrainedConfig,
    image_mean: Sequence[float],
    image_std: Sequence[float],
    *,
    image_aspect_ratio: str = "pad",
    template: str = "vicuna_v1",
    vision_feature_select_strategy: str = "full",
    prefix_tokens: int = 0,
) -> LlavaProcessor:
    """Builds the processor that goes with a vision tower.

    Args:
        tokenizer: has the token ``<image>`` (see ``load_tokenizer``).
        vision_config: the tower's, an ``S2VisionConfig`` or a single-scale backbone's; ``image_size`` is the side in
            pixels of the square it takes, ``patch_size`` the side one visual token covers.
        image_mean, image_std: of the backbone, per RGB channel, for values in 0 … 1.
        image_aspect_ratio: how an image becomes a square, LLaVA's names: ``pad`` (to a square with the mean colour),
            ``square`` (shortest side resized, then the centre cropped) or ``resize`` (stretched). ``keep`` pads too,
            for a tower with ``keep_aspect``, which takes the image out of its padding and tiles it as it is;
            ``dynamic`` is that for Dynamic-S² (``keep_aspect="dynamic"``).
        template: see ``find_template``.
        vision_feature_select_strategy, prefix_tokens: as the model's config has it, and how many tokens the tower
            gives before the patches (CLS); an S2 tower gives patches alone.

    Returns:
        A processor: ``processor(images=…, text=…)`` gives ``input_ids``, ``attention_mask`` and ``pixel_values`` of
        shape (images, 3, side, side), float32. It raises ValueError when the number of ``<image>`` in the text is
        not the number of images.

    Raises:
        InputError: unknown aspect ratio, or one that the tower is not made for; unknown template, or one whose tokens
            the tokenizer lacks.
    """
    kept = _kept_aspect_ratio(vision_config)
    asked = image_aspect_ratio if image_aspect_ratio in ("keep", "dynamic") else None
    if image_aspect_ratio in ASPECT_RATIOS and asked != kept:
        raise InputError(
            f"image_aspect_ratio {image_aspect_ratio!r} does not go with this tower: 'keep' goes with an S2 tower of "
            "keep_aspect=True, 'dynamic' with one of keep_aspect='dynamic', the others with any other"
        )
    chat_template = _chat_template(template, tokenizer)
    return LlavaProcessor(
        image_processor=build_image_processor(vision_config.image_size, image_mean, image_std, image_aspect_ratio),
        tokenizer=tokenizer,
        patch_size=vision_config.patch_size,
        vision_feature_select_strategy=vision_feature_select_strategy,
        num_additional_image_tokens=prefix_tokens,
        chat_template=chat_template,
    )


def build_image_processor(
    side: int,
    image_mean: Sequence[float],
    image_std: Sequence[float],
    image_aspect_ratio: str = "pad",
    *,
    backend: Literal["pil", "torchvision"] = "pil",
) -> LlavaImageProcessor | S2ImageProcessor:
    """LLaVA's image preparation for a tower: one resize, to the largest scale; arguments as of ``build_processor``.

    Args:
        side: the tower's ``image_size``. The smaller scales are made of these pixels, in the tower.
        backend: "torchvision" runs where the images are, on a GPU too; its resize rounds otherwise: by two of 255
            levels at most, in noise.

    Raises:
        InputError: unknown aspect ratio.

    Example:
        >>> build_image_processor(1008, mean, std)(images, return_tensors="pt")["pixel_values"]  # (n, 3, 1008, 1008)
    """
    if image_aspect_ratio not in ASPECT_RATIOS:
        raise InputError(
            f"image_aspect_ratio {image_aspect_ratio!r} is not known; use one of {', '.join(ASPECT_RATIOS)}"
        )
    processor_class = LlavaImageProcessor if backend == "torchvision" else S2ImageProcessor
    return processor_class(
        do_pad=image_aspect_ratio in ("pad", "keep", "dynamic"),
        size={"height": side, "width": side} if image_aspect_ratio == "resize" else {"shortest_edge": side},
        do_center_crop=image_aspect_ratio != "resize",
        crop_size={"height": side, "width": side},
        image_mean=list(image_mean),
        image_std=list(image_std),
    )


def set_template(processor: LlavaProcessor, template: str) -> None:
    """Has a processor write conversations in another template, see ``find_template``.

    Raises:
        InputError: unknown template, or one whose tokens the tokenizer lacks.
    """
    processor.chat_template = _chat_template(template, processor.tokenizer)


def _chat_template(template: str, tokenizer: PreTrainedTokenizerFast) -> str:
    chat_template = find_template(template, tokenizer.chat_template)
    end = end_of_turn(chat_template, tokenizer.eos_token)
    if end not in tokenizer.get_vocab():
        raise InputError(
            f"the template ends a turn with {end}, which the tokenizer of {tokenizer.name_or_path or 'the model'} does "
            "not have; choose the template that the language model was trained with"
        )
    return chat_template


def aspect_ratio(processor: LlavaProcessor, vision_config: PreTrainedConfig) -> str:
    """How a model takes images of any shape: a name in ``ASPECT_RATIOS``."""
    image_processor = processor.image_processor
    if getattr(image_processor, "do_pad", False):
        return _kept_aspect_ratio(vision_config) or "pad"
    return "resize" if "height" in image_processor.size else "square"


def _kept_aspect_ratio(vision_config: PreTrainedConfig) -> str | None:
    """``keep`` or ``dynamic`` of a tower that tiles images on their own aspect ratio; None of another."""
    return {True: "keep", "dynamic": "dynamic"}.get(getattr(vision_config, "keep_aspect", False))


def num_image_tokens(processor: LlavaProcessor) -> int:
    """How many tokens stand for one image, whatever its size: every image becomes the same square.

    Raises:
        InputError: the processor keeps an image's proportions, so that the number is not the same for all.
    """
    image_processor = processor.image_processor
    crops = getattr(image_processor, "do_center_crop", False)
    size = image_processor.crop_size if crops else image_processor.size
    if not size or "height" not in size:
        raise InputError(
            "the processor neither crops images to one size nor resizes them to one "
            "(crop_size or size in preprocessor_config.json), so the number of tokens an image takes is not fixed"
        )
    patches = (size["height"] // processor.patch_size) * (size["width"] // processor.patch_size)
    dropped = processor.vision_feature_select_strategy == "default"
    return patches + processor.num_additional_image_tokens - dropped


def image_repeats(ids: Sequence[int], processor: LlavaProcessor) -> list[int]:
    """How often each token stands in the model's input: the image placeholder as often as an image has tokens.

    Raises:
        InputError: see `num_image_tokens`.
    """
    run = num_image_tokens(processor)
    return [run if token == processor.image_token_id else 1 for token in ids]


def load_processor(name: str | Path) -> LlavaProcessor:
    """Loads a saved processor, whose images are resized by PIL from now on, saved again or not.

    The tokenizer pads on the left, where generation needs it.
    """
    processor = AutoProcessor.from_pretrained(name)
    if not hasattr(processor, "image_processor"):  # what is there is loaded: the tokenizer
        raise ValueError("transformers has no class of the name that processor_config.json gives as processor_class")
    found = processor.image_processor
    if type(found).__name__.removesuffix("Pil") in ("LlavaImageProcessor", "CLIPImageProcessor"):
        settings = {key: value for key, value in found.to_dict().items() if key != "image_processor_type"}
        processor.image_processor = S2ImageProcessor(**settings)
    pad_left(processor.tokenizer)
    return processor


def prefix_tokens(vision_config: PreTrainedConfig) -> int:
    """Tokens (CLS, registers) that a single-scale backbone gives before its patches: one of CLIP, none of SigLIP."""
    return 1 if vision_config.model_type.startswith("clip") else geometry(vision_config).prefix
