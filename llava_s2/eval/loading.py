"""Images ready for the model before it asks: decoding and resizing in threads, beside the model's work."""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm
from transformers import LlavaProcessor

from llava_s2.data.image_decoding import Embedded, open_image
from llava_s2.errors import InputError
from llava_s2.eval.benchmark import Sample
from llava_s2.model.inference import Pictures, prepare_image

_IMAGES_DECODED_AHEAD = 1000
_BATCHES_AHEAD = 2
_MOST_THREADS = 8


def load_ahead(
    batches: Iterable[Sequence[Sample]], processor: LlavaProcessor
) -> Iterator[tuple[Sequence[Sample], list[Pictures]]]:
    """Each batch with its questions' pictures; an image that repeats in a batch is one and the same tensor.

    While the caller works on a batch, the next two are read, decoded and resized; no more are held.

    Raises:
        InputError: an image that cannot be read, when its batch's turn comes.
    """

    def prepared(image: Path | Embedded) -> torch.Tensor:
        return prepare_image(processor, read_image(image))

    waiting: deque[tuple[Sequence[Sample], dict[Path | Embedded, Future[torch.Tensor]]]] = deque()
    threads = ThreadPoolExecutor(_threads())
    try:
        for batch in batches:
            images = dict.fromkeys(image for sample in batch for image in sample.images)
            waiting.append((batch, {image: threads.submit(prepared, image) for image in images}))
            if len(waiting) > _BATCHES_AHEAD:
                yield _collected(*waiting.popleft())
        while waiting:
            yield _collected(*waiting.popleft())
    finally:
        threads.shutdown(wait=False, cancel_futures=True)


def _collected(
    batch: Sequence[Sample], futures: dict[Path | Embedded, "Future[torch.Tensor]"]
) -> tuple[Sequence[Sample], list[Pictures]]:
    pictures = {image: future.result() for image, future in futures.items()}
    return batch, [tuple(pictures[image] for image in sample.images) for sample in batch]


def check_images(everything: Sequence[Sample], samples: Sequence[Sample]) -> None:
    """That all images are there, counting those that are not; and decodes up to 1,000 of ``samples``.

    So a damaged one shows before a model is loaded and not hours later.

    Raises:
        InputError: naming the first that is missing or damaged.
    """
    wanted = dict.fromkeys(image for sample in everything for image in sample.images if isinstance(image, Path))
    if missing := [path for path in wanted if not path.is_file()]:
        raise InputError(f"{missing[0]}: no such image file (so for {len(missing)} of {len(wanted)} images)")
    shown = list(dict.fromkeys(image for sample in samples for image in sample.images))[:_IMAGES_DECODED_AHEAD]
    with ThreadPoolExecutor(_threads()) as threads:
        for _ in tqdm(threads.map(_decodes, shown), total=len(shown), desc="checking images", delay=2):
            pass


def _decodes(image: Path | Embedded) -> None:
    read_image(image)  # and lets it go: a map's results wait for their turn


def read_image(image: Path | Embedded) -> Image.Image:
    """Decodes it, upright and in RGB; InputError if that cannot be done."""
    return image.open() if isinstance(image, Embedded) else open_image(image)


def _threads() -> int:
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(_MOST_THREADS, (os.cpu_count() or 1) // beside))
