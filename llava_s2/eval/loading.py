"""Images ready for the model before it asks: decoding and resizing in threads, beside the model's work."""

import os
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from llava_s2.data.image_decoding import DecodedImage, Embedded, decode_image
from llava_s2.errors import InputError
from llava_s2.eval.benchmark import Sample

_IMAGES_DECODED_AHEAD = 1000
_BATCHES_AHEAD = 2
_MOST_THREADS = 8

Mark = tuple[int, str]


@dataclass(frozen=True)
class Prepared:
    """A question's images as the model takes them.

    Attributes:
        images: in order; empty if one cannot be read.
        conversions: what was done to decode them; keys of ``CONVERSIONS``.
        fault: why one of them cannot be read, or the empty text.
        marks: of each image's file, see ``mark``; empty if one cannot be read.
    """

    images: tuple[Any, ...]
    conversions: tuple[str, ...] = ()
    fault: str = ""
    marks: tuple[Mark, ...] = ()


def load_ahead(
    batches: Iterable[Sequence[Sample]],
    prepare: Callable[[Image.Image, Path | Embedded | None], Any],
    *,
    skip: bool = False,
    turn: bool = True,
) -> Iterator[tuple[Sequence[Sample], list[Prepared]]]:
    """Each batch with its questions' images; an image that repeats in a batch is one and the same object.

    While the caller works on a batch, the next two are read, decoded and prepared; no more are held.

    Args:
        batches: of questions.
        prepare: makes of an image what the model takes; also given its file, where that shows the same to any program.
        skip: gives the fault in place of an image that cannot be read.
        turn: whether images are turned as their EXIF orientation says.

    Raises:
        InputError: an image that cannot be read, when its batch's turn comes.
    """

    def prepared(shown: Path | Embedded) -> Prepared:
        try:
            image = _read_once(shown)
            marked = mark(image)
            decoded = read_image(image, turn=turn)
        except InputError as error:
            if skip:
                return Prepared((), fault=str(error))
            raise
        as_it_is = turn and not decoded.conversions
        taken = prepare(decoded.image, image if as_it_is else None)
        return Prepared((taken,), decoded.conversions, marks=(marked,))

    waiting: deque[tuple[Sequence[Sample], dict[Path | Embedded, Future[Prepared]]]] = deque()
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
    batch: Sequence[Sample], futures: dict[Path | Embedded, "Future[Prepared]"]
) -> tuple[Sequence[Sample], list[Prepared]]:
    images = {image: future.result() for image, future in futures.items()}
    return batch, [_joined([images[image] for image in sample.images]) for sample in batch]


def _joined(parts: Sequence[Prepared]) -> Prepared:
    if fault := next((part.fault for part in parts if part.fault), ""):
        return Prepared((), fault=fault)
    conversions = dict.fromkeys(name for part in parts for name in part.conversions)
    images = tuple(image for part in parts for image in part.images)
    return Prepared(images, tuple(conversions), marks=tuple(mark for part in parts for mark in part.marks))


def check_images(everything: Sequence[Sample], samples: Sequence[Sample]) -> None:
    """That all images are there, counting those that are not; and decodes up to 1,000 of ``samples``.

    So a damaged one shows before a model is loaded and not hours later.

    Raises:
        InputError: naming the first that is missing or damaged.
    """
    way_out = "; --on-bad-image skip counts such questions as wrong"
    wanted = dict.fromkeys(image for sample in everything for image in sample.images if isinstance(image, Path))
    # Path.is_file raises where a folder may not be searched or a name is too long.
    if missing := [path for path in wanted if not os.path.isfile(path)]:  # noqa: PTH113
        there = os.path.exists(missing[0])  # noqa: PTH110
        what = "a folder, a pipe or a device, and no image file" if there else "no such image file"
        raise InputError(f"{missing[0]}: {what} (so for {len(missing)} of {len(wanted)} images){way_out}")
    shown = list(dict.fromkeys(image for sample in samples for image in sample.images))[:_IMAGES_DECODED_AHEAD]
    if bad := unreadable(shown):
        reason = next(iter(bad.values()))
        more = f" (so for {len(bad)} of the {len(shown)} images tried)" if len(bad) > 1 else ""
        raise InputError(f"{reason}{more}{way_out}")


def unreadable(images: Sequence[Path | Embedded]) -> dict[Path | Embedded, str]:
    """Those of the images that cannot be decoded, each with the reason."""

    def fault(image: Path | Embedded) -> str:  # and lets the pixels go: a map's results wait for their turn
        try:
            read_image(image)
        except InputError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(_threads()) as threads:
        faults = tqdm(threads.map(fault, images), total=len(images), desc="checking images", delay=2)
        return {image: reason for image, reason in zip(images, faults, strict=True) if reason}


def read_image(image: Path | Embedded, *, turn: bool = True) -> DecodedImage:
    """Decodes it in RGB; InputError if that cannot be done."""
    if isinstance(image, Embedded):
        return image.decode(apply_orientation=turn)
    return decode_image(image, apply_orientation=turn)


def _read_once(image: Path | Embedded) -> Path | Embedded:
    """The same image; one inside a data file with its bytes at hand. Raises InputError if they cannot be read."""
    if isinstance(image, Path):
        return image
    data = image.read()
    return Embedded(image.name, lambda: data)


def mark(image: Path | Embedded) -> Mark:
    """Size of an image's file and a checksum, by which a replaced one is told from before; -1 if it cannot be read.

    The checksum is of a kilobyte at the beginning, middle and end; of an image inside a data file, of all.
    """
    try:
        if isinstance(image, Embedded):
            data = image.read()
            return len(data), f"{zlib.crc32(data):08x}"
        if not os.path.isfile(image):  # noqa: PTH113  (Path.is_file raises where a name is too long)
            return -1, ""
        checksum = 0
        with image.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            for place in (0, size // 2, max(0, size - 1024)):
                file.seek(place)
                checksum = zlib.crc32(file.read(1024), checksum)
    except (InputError, OSError):
        return -1, ""
    return size, f"{checksum:08x}"


def _threads() -> int:
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(_MOST_THREADS, (os.cpu_count() or 1) // beside))
