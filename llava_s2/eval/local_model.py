"""A checkpoint that answers in this process: what the runner asks of a model."""

import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llava_s2.errors import InputError
from llava_s2.eval.batching import automatic_size
from llava_s2.eval.benchmark import Sample
from llava_s2.formats.model_source import ModelSource

if TYPE_CHECKING:
    from PIL import Image
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

    from llava_s2.eval.generation import Answer
    from llava_s2.model.option_ranking import Ranking


class LocalModel:
    """A model, loaded when it is first needed and then kept, so that several tasks load it once.

    Args:
        source: the checkpoint.
        image_mode: how images become squares, in place of the checkpoint's own way.
    """

    def __init__(self, source: ModelSource, image_mode: str | None = None) -> None:
        self._source = source
        self._image_mode = image_mode
        self._loaded: tuple[LlavaForConditionalGeneration, LlavaProcessor] | None = None

    def fingerprint(self) -> dict[str, Any]:
        """What tells this model from another, as far as it is known without loading it."""
        mode = {} if self._image_mode is None else {"image_mode_asked": self._image_mode}
        return self._source.fingerprint() | mode

    def _parts(self) -> "tuple[LlavaForConditionalGeneration, LlavaProcessor]":
        if self._loaded is None:
            self._loaded = self._source.load()
            if self._image_mode is not None:
                self._loaded = (self._loaded[0], _with_mode(self._loaded[1], self._image_mode))
        return self._loaded

    def about(self) -> dict[str, Any]:
        """What only the loaded model tells."""
        from llava_s2.model.processor import aspect_ratio
        from llava_s2.model.templates import TEMPLATES

        model, processor = self._parts()
        vision_config: Any = model.config.vision_config
        chat_template = str(processor.chat_template)
        own = f"the checkpoint's own ({hashlib.sha256(chat_template.encode()).hexdigest()[:16]})"
        return {
            "template": next((name for name, text in TEMPLATES.items() if text == chat_template), own),
            "image_mode": aspect_ratio(processor, vision_config),
            "dtype": str(model.dtype).removeprefix("torch."),
            "revisions": self._source.revisions(),
        }

    def automatic_size(self, samples: Sequence[Sample], answer_tokens: int) -> int:
        """Questions at once that the memory takes."""
        return automatic_size(*self._parts(), samples, answer_tokens)

    def prepare(self, image: "Image.Image", file: Any = None) -> Any:
        """The image as the model takes it, (3, S, S) float32."""
        from llava_s2.model.inference import prepare_image

        return prepare_image(self._parts()[1], image)

    def generate(self, batch: Sequence[tuple[Sample, Any]], max_new_tokens: int) -> list[dict[str, Any]]:
        """The greedy answer to each question: ``text``, and of `Answer`'s flags those that are so."""
        from llava_s2.eval.generation import answers

        samples, images = zip(*batch, strict=True)
        found = answers(*self._parts(), images, [content(sample) for sample in samples], max_new_tokens)
        return [{"text": one.text, **_flags(one), **({"cut": True} if one.cut else {})} for one in found]

    def rank(self, batch: Sequence[tuple[Sample, Any]]) -> list[dict[str, Any]]:
        """The ``losses`` of each question's options, all about the same images, and flags as of `generate`."""
        from llava_s2.model import option_ranking

        questions = [(sample.prompt, sample.options) for sample, _ in batch]
        rankings = option_ranking.rank_options(*self._parts(), batch[0][1], questions)
        return [{"losses": ranking.losses, **_flags(ranking)} for ranking in rankings]


def _flags(found: "Answer | Ranking") -> dict[str, bool]:
    """What is to be known of a prediction, where it is so."""
    flags = {"near_tie": found.near_tie, "too_long": found.too_long}
    return {name: True for name, so in flags.items() if so}


def content(sample: Sample) -> str | list[dict[str, Any]]:
    """The prompt; or, where the images have their places in it, its parts as chat templates take them."""
    if not sample.interleaved:
        return sample.prompt
    words = sample.prompt.split("<image>")
    parts: list[dict[str, Any]] = [{"type": "text", "text": words[0]}]
    for text in words[1:]:
        parts += [{"type": "image"}, {"type": "text", "text": text}]
    return [part for part in parts if part.get("text", " ")]


def chosen(sample: Sample, prediction: dict[str, Any]) -> dict[str, Any]:
    """The prediction of a likelihood: the option with the smallest loss as the text."""
    losses = prediction["losses"]
    if not all(map(math.isfinite, losses)):  # whichever compares smallest would pass for the answer
        raise InputError(
            f"question {sample.id}: the model's losses are {losses}, no numbers to compare; does its precision "
            "overflow? Choose --dtype float32 or bfloat16"
        )
    return {"text": sample.options[losses.index(min(losses))], **prediction}


def _with_mode(processor: "LlavaProcessor", mode: str) -> "LlavaProcessor":
    """The same processor with another way from an image to a square."""
    from llava_s2.model.processor import build_image_processor

    own = processor.image_processor
    side = own.crop_size["height"]
    processor.image_processor = build_image_processor(side, own.image_mean, own.image_std, mode)
    return processor
