"""Training data from one or several sources: files of records with where their images are, mixed by weight."""

import lzma
import re
import tarfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from tqdm import tqdm

from llava_s2.data.image_files import ImageFiles
from llava_s2.data.json_records import Records
from llava_s2.data.record_shapes import images_of
from llava_s2.data.shard_records import ShardRecords
from llava_s2.data.table_records import TableRecords, saved_files
from llava_s2.data.validation_error import ValidationError
from llava_s2.errors import InputError

# How the hub names the files of a split.
_SPLITS = {"train": "train(?:ing)?", "validation": "val(?:id(?:ation)?)?|dev", "test": "test(?:ing)?|eval(?:uation)?"}
_SPLIT = re.compile("(?:^|[/_. -])(?:" + "|".join(f"(?P<{k}>{v})" for k, v in _SPLITS.items()) + ")(?=[/_. -])")


class Reader(Protocol):
    """Random access to the records of one source; a record that cannot be read raises `ValidationError`."""

    path: Path

    @property
    def broken(self) -> dict[int, str]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    def where(self, index: int) -> str: ...


def read_records(
    path: str | Path, visit: Callable[[int, dict[str, Any]], None] | None = None, tolerant: bool = False
) -> Reader:
    """Opens a data file of any kind that is known, by its content.

    Args:
        path: LLaVA's JSON or JSON lines; a folder of ``datasets``' ``save_to_disk``; a Parquet file or a webdataset
            shard, or a folder or pattern (``shards/*.tar``) of several.
        visit: called with index and value of every record, in order.
        tolerant: to go on behind what is no record, see `Records`.

    Raises:
        InputError: no such file, or not what it should be.
    """
    place = Path(path)
    if place.is_dir() and ((place / "state.json").is_file() or (place / "dataset_dict.json").is_file()):
        return _visited(TableRecords(place, saved_files(place)), visit, tolerant)
    files = _files(place)
    if all(file.suffix == ".parquet" for file in files):
        return _visited(TableRecords(place, files), visit, tolerant)
    if all(file.suffix == ".tar" or (file.is_file() and _is_tar(file)) for file in files):
        return _visited(ShardRecords(place, files), visit, tolerant)
    if len(files) > 1:
        raise InputError(f"{path}: several files of records; name each of them: --data_path {files[0]} {files[1]} …")
    return Records(files[0], visit, tolerant)


def _is_tar(file: Path) -> bool:
    try:
        return tarfile.is_tarfile(file)
    except (OSError, EOFError, zlib.error, lzma.LZMAError):  # of a compressed file that is cut off or damaged
        return False


def _files(place: Path) -> list[Path]:
    if not place.is_dir():
        found = [place] if place.exists() else sorted(map(Path, glob(str(place)))) or [place]  # noqa: PTH207
        return _of_one_split(place, place.parent, found)
    for pattern in ("*.parquet", "**/*.parquet", "*.tar"):
        if found := sorted(place.glob(pattern)):
            return _of_one_split(place, place, found)
    raise InputError(f"{place}: a folder with neither datasets' state.json nor Parquet or tar files; name a file")


def _of_one_split(place: Path, folder: Path, files: list[Path]) -> list[Path]:
    """The files, unless their names below ``folder`` say that they are of several splits."""
    firsts: dict[str, Path] = {}
    for file in files:
        name = file.relative_to(folder).as_posix() if len(files) > 1 and folder in file.parents else ""
        if found := _SPLIT.search(name):
            firsts.setdefault(str(found.lastgroup), file)
    if len(firsts) > 1:
        raise InputError(
            f"{place}: holds files of the splits {', '.join(firsts)} ({', '.join(map(str, firsts.values()))} …); name "
            "those to train on, each or by a pattern"
        )
    return files


def _visited(reader: Reader, visit: Callable[[int, dict[str, Any]], None] | None, tolerant: bool) -> Reader:
    if visit is None:
        return reader
    for index in tqdm(range(len(reader)), desc=f"reading {reader.path.name}", unit="record", delay=2):
        try:
            record = reader[index]
        except ValidationError as error:
            if tolerant:
                reader.broken.setdefault(index, str(error))
                continue
            raise InputError(f"{reader.where(index)}: {error}") from None
        visit(index, record)
    return reader


@dataclass
class Source:
    """Records and the images that they name."""

    records: Reader
    files: ImageFiles


class Mix(Sequence[dict[str, Any]]):
    """The records of several sources as one sequence; each record knows its source's images.

    Args:
        sources: in order.
        weights: of each source, how often an epoch has its records: 2 has each twice; 0.5 has half of them, drawn by
            ``seed``, the same in every epoch. None has every record once.
        seed: of the draw.
    """

    def __init__(self, sources: Sequence[Source], weights: Sequence[float] | None = None, seed: int = 0) -> None:
        self.sources = list(sources)
        self._ends = np.cumsum([len(source.records) for source in self.sources])
        self._chosen: np.ndarray | None = None  # int64 (N,): which of all the sources' records stands where
        if weights is not None:
            chosen = []
            for number, (end, weight) in enumerate(zip(self._ends.tolist(), weights, strict=True)):
                count = len(self.sources[number].records)
                whole = np.arange(end - count, end)
                part = np.random.default_rng((seed, number)).permutation(whole)[: round(count * (weight % 1))]
                chosen += [np.tile(whole, int(weight)), np.sort(part)]
            self._chosen = np.concatenate(chosen)
            if not len(self._chosen):
                raise InputError(f"--data_weights {' '.join(map(str, weights))}: leave no record to train on")

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._chosen is None else len(self._chosen)

    def __getitem__(self, index: int) -> dict[str, Any]:  # type: ignore[override]  # no slices
        source, inner = self.locate(index)
        return source.records[inner]

    def where(self, index: int) -> str:
        """Names a record for a message, by its source's file and its place there."""
        source, inner = self.locate(index)
        return source.records.where(inner)

    def open_images(self, index: int) -> list[Image.Image]:
        """The images of a record, upright RGB. Raises ValidationError where one is missing or damaged."""
        source, inner = self.locate(index)
        return [source.files.open(image) for image in images_of(source.records[inner])]

    def locate(self, index: int) -> tuple[Source, int]:
        """The source of a record and its index there."""
        position = self.position(index)
        number = int(np.searchsorted(self._ends, position, side="right"))
        return self.sources[number], position - (int(self._ends[number - 1]) if number else 0)

    def position(self, index: int) -> int:
        """Which of all the sources' records, counted one source after the other, stands at ``index``."""
        index = range(len(self))[index]
        return index if self._chosen is None else int(self._chosen[index])

    def positions(self) -> np.ndarray:
        """`position` of every index, int64 (N,)."""
        return np.arange(len(self)) if self._chosen is None else self._chosen

    def choose(self, positions: np.ndarray) -> None:
        """Puts other records in their place: ``positions`` as `position` gives them, for every index."""
        self._chosen = positions
