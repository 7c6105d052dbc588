"""Records in webdataset shards: tar files in which ``KEY.json`` and ``KEY.jpg`` stand one after the other."""

import json
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from llava_s2.data.cache import cached
from llava_s2.data.image_decoding import Embedded
from llava_s2.data.tar_members import list_members, read_range
from llava_s2.data.validation_error import ValidationError
from llava_s2.errors import InputError

_IMAGE = re.compile(r"\.(jpe?g|png|webp|gif|bmp|tiff?|ppm|heic|avif|jp2|jfif)$", re.IGNORECASE)
_OTHER_MEDIA = re.compile(r"\.(mp4|mkv|webm|mov|avi|wav|mp3|flac|ogg|m4a)$", re.IGNORECASE)


class ShardRecords(Sequence[dict[str, Any]]):
    """Random access to the samples of webdataset shards as LLaVA records.

    A sample is the files of one key, which is a name up to the first dot behind its last slash. Its ``.json`` is the
    record; its images, in order of their names (``2.png`` before ``10.png``), are the record's images, whatever the
    JSON calls them. Of a sample without an image the JSON's own ``image`` counts.

    Args:
        path: what messages name: a shard, or the folder or pattern that ``shards`` were found by.
        shards: the tar files.

    Attributes:
        broken: index of a sample without JSON, or with a video or sound -> what is wrong with it.

    Raises:
        InputError: a shard is no tar file, is compressed or cut off, or there is no sample in them.
    """

    def __init__(self, path: Path, shards: Sequence[Path]) -> None:
        self.path, self.shards = path, list(shards)
        numbers, records, images, firsts, others = [], [], [], [], []
        count = 0
        for number, shard in enumerate(tqdm(self.shards, desc="indexing shards", unit="file", delay=2)):
            index = np.load(cached("shard-samples-2", [shard], partial(_save_samples, shard)))
            numbers.append(np.full(len(index["records"]), number, np.int32))
            records.append(index["records"])
            images.append(index["images"])
            firsts.append(index["firsts"] + count)
            others.append(index["others"] + count)
            count += len(index["images"])
        self._shards, self._records, self._images = map(np.concatenate, (numbers, records, images))
        self._firsts = np.append(np.concatenate(firsts), count)
        if not len(self):
            raise InputError(f"{path}: holds no samples")
        without = np.flatnonzero(self._records[:, 1] < 0).tolist()
        self.broken = dict.fromkeys(np.concatenate(others).tolist(), "videos and sounds are not trained on; drop it")
        self.broken |= dict.fromkeys(without, "the sample has no .json file")

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, index: int) -> dict[str, Any]:  # type: ignore[override]  # no slices
        index = range(len(self))[index]
        if index in self.broken:
            raise ValidationError("malformed", self.broken[index])
        shard = self.shards[self._shards[index]]
        try:
            record = json.loads(read_range(shard, *map(int, self._records[index])))
        except ValueError as error:
            raise ValidationError("malformed", f"its .json is not JSON: {error}") from None
        if not isinstance(record, dict):
            raise ValidationError("malformed", f"its .json is not a JSON object but {type(record).__name__}")
        first, end = map(int, self._firsts[index : index + 2])
        images = [_embedded(shard, *map(int, place)) for place in self._images[first:end]]
        if images:
            record["image"] = images
            record.pop("images", None)
        return record

    def where(self, index: int) -> str:
        """Names a record for a message: shard, number of the sample from 0 in all the shards, id where it has one."""
        try:
            record = self[index]
        except ValidationError:
            record = {}
        identity = f" (id {record['id']!r})" if "id" in record else ""
        return f"{self.shards[self._shards[index]]}: record {index}{identity}"


def _embedded(shard: Path, start: int, size: int) -> Embedded:
    return Embedded(f"{shard}, image at byte {start}", lambda: read_range(shard, start, size))


def _in_order(image: tuple[str, int, int]) -> tuple[Any, ...]:
    """A name's place among others, numbers in it by their value."""
    name, start, _ = image
    return (*((not part.isdigit(), int(part) if part.isdigit() else part) for part in re.split(r"(\d+)", name)), start)


def _save_samples(shard: Path, out: Path) -> None:
    """Writes the samples' JSON places ((N, 2), size -1 without), all images' ((M, 2)), each sample's first image, and
    which samples hold a video or a sound."""
    records: list[tuple[int, int]] = []
    samples: list[list[tuple[str, int, int]]] = []
    others, last = set(), None
    for name, start, size in list_members(shard):
        folder, slash, file = name.rpartition("/")
        stem, dot, ending = file.partition(".")
        if not dot or not stem:  # a file of no sample, such as .DS_Store
            continue
        key = folder + slash + stem
        if key != last:
            last = key
            records.append((0, -1))
            samples.append([])
        if ending == "json":
            records[-1] = (start, size)
        elif _IMAGE.search(file):
            samples[-1].append((ending, start, size))
        elif _OTHER_MEDIA.search(file):
            others.add(len(samples) - 1)
    images = [(start, size) for sample in samples for _, start, size in sorted(sample, key=_in_order)]
    counts = [len(sample) for sample in samples]
    arrays: dict[str, Any] = {
        "records": np.array(records, np.int64).reshape(-1, 2),
        "others": np.array(sorted(others), np.int64),
        "images": np.array(images, np.int64).reshape(-1, 2),
        "firsts": np.cumsum([0, *counts[:-1]], dtype=np.int64)[: len(counts)],
    }
    with out.open("wb") as written:
        np.savez(written, **arrays)
