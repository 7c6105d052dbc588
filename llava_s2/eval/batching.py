"""Which questions go through the model together, and how many."""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

from llava_s2.eval.benchmark import Sample, Scoring

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

_log = logging.getLogger(__name__)
_MOST = 64
_MOST_ON_CPU = 16  # more gains nothing there
_TEXT_TOKENS = 512
_SHARE_OF_FREE = 0.5

Item = TypeVar("Item")
Result = TypeVar("Result")


def batches(samples: Sequence[Sample], size: int, scoring: Scoring) -> list[list[Sample]]:
    """The samples in batches of up to ``size``.

    Questions about the same images stand together, since they share their encoding; the largest come first, so that
    too little memory shows at once and the batches' questions are of like length. Likelihood takes questions together
    only if their images are the same: its work on one question already is a batch, of the options.
    """
    groups: dict[object, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.images or sample.id, []).append(sample)
    ordered = sorted(groups.values(), key=lambda g: (len(g[0].images), max(len(s.prompt) for s in g)), reverse=True)
    if scoring == "likelihood":
        return [part for group in ordered for part in _parts(group, size)]
    return _parts([sample for group in ordered for sample in group], size)


def automatic_size(
    model: "LlavaForConditionalGeneration", processor: "LlavaProcessor", samples: Sequence[Sample], answer_tokens: int
) -> int:
    """How many questions' key-value caches fill half of the free memory, at most 64 on an accelerator, 16 on a CPU."""
    import torch

    from llava_s2.model.processor import num_image_tokens

    text = model.config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    token = 2 * text.num_hidden_layers * heads * width * model.dtype.itemsize
    images = max(len(sample.images) for sample in samples)
    tokens = images * num_image_tokens(processor) + _TEXT_TOKENS + answer_tokens
    if model.device.type == "cuda":
        free, most = torch.cuda.mem_get_info(model.device)[0], _MOST
    else:
        import psutil

        free, most = psutil.virtual_memory().available, _MOST_ON_CPU
    return max(1, min(most, int(_SHARE_OF_FREE * free / (token * tokens))))


class Halving(Generic[Item, Result]):
    """Calls a function on batches; where memory does not suffice, on their halves, and on no larger ones from then on.

    Args:
        function: takes a list and returns as many results.
    """

    def __init__(self, function: Callable[[Sequence[Item]], Sequence[Result]]) -> None:
        self._function = function
        self._most: int | None = None

    def __call__(self, batch: Sequence[Item]) -> list[Result]:
        """The results of all of ``batch``; the error itself if one alone is too large."""
        from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

        results: list[Result] = []
        while len(results) < len(batch):
            part = batch[len(results) :][: self._most]
            try:
                results += self._function(part)
                continue
            except RuntimeError as error:
                if len(part) == 1 or not should_reduce_batch_size(error):
                    raise
            # Outside of the handler, whose traceback holds the tensors.
            self._most = (len(part) + 1) // 2
            _log.warning("out of memory with %d questions at once; going on with %d", len(part), self._most)
            clear_device_cache(garbage_collection=True)
        return results


def _parts(items: Iterable[Sample], size: int) -> list[list[Sample]]:
    listed = list(items)
    return [listed[start : start + size] for start in range(0, len(listed), size)]
