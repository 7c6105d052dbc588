"""What a training run reads before any weight: all its records, checked, and what batching needs to know of them."""

import os
import re
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from llava_s2.data.image_files import ImageFiles
from llava_s2.data.record_shapes import unread_of
from llava_s2.data.sources import Mix, Reader, Source, read_records
from llava_s2.data.unread import media_keys, unread_links
from llava_s2.data.validate_record import validate_record
from llava_s2.data.validation_error import ValidationError
from llava_s2.data.verdict import Verdict, VerdictFile
from llava_s2.errors import InputError
from llava_s2.model.templates import IMAGE_TOKEN, find_template

_IMAGES_DECODED_AHEAD = 1000  # records; all of a small set, a sample of a large one
_UNKNOWN = 1 << 40  # more than any length allowed, so that the record is looked at
_NO_WORDS = re.compile(r"(?:\s|<[^<>\s]*>)*")  # an answer of special tokens perhaps, which only a tokenizer knows


@dataclass
class BadRecord:
    """A record that training leaves out, and the one that stands in its place.

    Attributes:
        record: its number, counted over all sources.
        where, error: as an error message names them.
        replaced_by: where the other one is.
    """

    record: int
    where: str
    error: str
    replaced_by: str


@dataclass
class TrainingRecords:
    """Data that passed `check_records`, with what batching needs to know of each record."""

    records: Mix
    lengths: np.ndarray  # int64 (N,): words; below zero for text alone, as LLaVA's modality lengths
    images_before_answer: np.ndarray  # int64 (N,)
    bytes_before_answer: np.ndarray  # int64 (N,): bytes of the first question; huge where its answer may teach nothing
    images: np.ndarray  # int64 (N,)
    bytes: np.ndarray  # int64 (N,): UTF-8 bytes of all turns
    known_by: Sequence[object]  # what all this depends on
    notices: list[str] = field(default_factory=list)  # what does not stop a run, for people to know
    bad: list[BadRecord] = field(default_factory=list)

    @property
    def describe(self) -> str:
        """Such as ``9 records with images, 1 text alone``."""
        with_images = int((self.images > 0).sum())
        return f"{with_images:,} records with images, {len(self.images) - with_images:,} text alone"


class _Columns:
    """What is noted of one source's records while they are read."""

    def __init__(self, path: str | Path, files: ImageFiles, chat_template: str) -> None:
        self.path, self.files, self.chat_template = path, files, chat_template
        self.image_folders: set[str] = set()
        self._columns = [array("q") for _ in range(5)]
        self._faults: dict[int, ValidationError] = {}
        self._empty_turns: list[int] = []
        self._media_keys: dict[str, list[int]] = {}  # key -> first record with it, and how many
        self._unread_keys: Counter[str] = Counter()
        self._ids = array("q")
        self._has_id = bytearray()

    def _fill(self, count: int) -> None:
        for column in (*self._columns, self._ids):
            column.extend([0] * (count - len(column)))
        self._has_id.extend(bytes(count - len(self._has_id)))

    def visit(self, index: int, record: dict[str, Any]) -> None:
        if len(self._ids) < index:  # behind what was no record
            self._fill(index)
        found = validate_record(record, self.chat_template, self.files)
        identity = record.get("id")
        self._ids.append(hash(identity if isinstance(identity, str | int) else str(identity)))
        self._has_id.append(identity is not None)
        # os.path in a third of pathlib's time
        names = (image for image in found.images if isinstance(image, str))
        self.image_folders.update(os.path.dirname(name) for name in names)  # noqa: PTH120
        if any(fault.kind == "empty_turn" for fault in found.faults):
            self._empty_turns.append(index)
        if found.error is not None or found.messages is None:
            self._faults[index] = found.error or ValidationError("malformed", "cannot be read")
            self._fill(index + 1)
            return
        unread, in_turns = unread_of(record)
        media = media_keys(unread, bool(found.images))
        for key in media:
            self._media_keys.setdefault(key, [index, 0])[1] += 1
        self._unread_keys.update(key for key in [*unread, *in_turns] if key not in media)
        self._unread_keys.update(unread_links(found.messages))
        said = [message for message in found.messages if message["role"] != "system"]
        system = sum(len(message["content"].encode()) for message in found.messages if message["role"] == "system")
        contents = [message["content"] for message in said]
        first_answer = next(number for number, message in enumerate(said) if message["role"] == "assistant")
        is_plain = said[first_answer].get("weight", 1) and not _NO_WORDS.fullmatch(contents[first_answer])
        words = sum(len(text.split()) for text in contents)
        values = (
            words if found.images else -words,
            sum(text.count(IMAGE_TOKEN) for text in contents[:first_answer]),
            system + sum(len(text.encode()) for text in contents[:first_answer]) if is_plain else _UNKNOWN,
            len(found.images),
            system + sum(len(text.encode()) for text in contents),
        )
        for column, value in zip(self._columns, values, strict=True):
            column.append(value)

    def verdict(self, records: Reader) -> Verdict:
        """What was found, once all the records have been visited."""
        self._fill(len(records))
        faults = self._faults | {index: ValidationError("malformed", text) for index, text in records.broken.items()}
        columns = np.stack([np.frombuffer(column, np.int64) for column in self._columns])
        return Verdict(columns, faults, self._notices(records))

    def _notices(self, records: Reader) -> list[str]:
        notes = []
        if self._empty_turns:
            first = records.where(self._empty_turns[0])
            notes.append(f"{first}: has an empty turn; so have {len(self._empty_turns)} of {len(records)}")
        for key, (index, count) in self._media_keys.items():
            notes.append(
                f'{records.where(index)}: "{key}" looks like media and is not read; so in {count} of {len(records)}'
            )
        if self._unread_keys:
            notes.append(f"{self.path}: keys that are not read: {describe_unread(self._unread_keys)}")
        indices = np.flatnonzero(np.frombuffer(self._has_id, np.uint8))
        repeats = repeated(np.frombuffer(self._ids, np.int64)[indices])
        if repeats:
            later, earlier = (int(indices[each]) for each in repeats[0])
            notes.append(
                f"{records.where(later)}: has the id of record {earlier}; {len(repeats)} ids come again, and all "
                "those records are trained on"
            )
        return notes


@dataclass
class _Part:
    """One source and what is known of it."""

    path: str | Path
    image_folder: str | Path | None
    files: ImageFiles
    records: Reader
    verdict: Verdict
    known_by: Sequence[object]


def check_source(
    path: str | Path,
    image_folder: str | Path | None,
    chat_template: str,
    *,
    tolerant: bool = False,
    images_opened: bool = False,
) -> _Part:
    """Opens one source and checks its records, unless they were checked before and have not changed.

    Faults that stop a run are looked for again, so that whoever mended one is not told of it.

    Args:
        path, image_folder: see `check_records`.
        chat_template: Jinja text.
        tolerant: to go on behind what is no record.
        images_opened: whether the caller has opened every image, so that no other start need try some.

    Raises:
        InputError: the file cannot be read, or one of its records cannot, without ``tolerant``.
    """
    files = ImageFiles(image_folder)
    place = VerdictFile(path, files, chat_template)
    verdict = place.read()
    if verdict is not None and (tolerant or not verdict.faults) and (verdict.images_opened or not images_opened):
        records = read_records(path, tolerant=tolerant)
        if len(records) == verdict.columns.shape[1]:
            return _Part(path, image_folder, files, records, verdict, place.known_by)
    columns = _Columns(path, files, chat_template)
    records = read_records(path, columns.visit, tolerant)
    verdict = columns.verdict(records)
    verdict.images_opened = images_opened
    if VerdictFile(path, files, chat_template).known_by == place.known_by:  # it did not change meanwhile
        place.write(verdict, columns.image_folders)
    return _Part(path, image_folder, files, records, verdict, place.known_by)


def describe_unread(keys: Mapping[str, int], shown: int = 12) -> str:
    """Such as ``source (9 records), width (2 records)``: keys with how many records have them."""
    told = [f"{key} ({count:,} records)" for key, count in list(keys.items())[:shown]]
    return ", ".join(told) + (f" and {len(keys) - shown} more" if len(keys) > shown else "")


def repeated(ids: np.ndarray) -> list[tuple[int, int]]:
    """Of values (N,): for each that an earlier one equals, its index and the first one's, in order."""
    order = np.argsort(ids, kind="stable")
    firsts = np.flatnonzero(np.r_[True, ids[order][1:] != ids[order][:-1]]) if len(ids) else np.array([], int)
    first_of = np.repeat(order[firsts], np.diff(np.r_[firsts, len(ids)]))
    return sorted((int(index), int(first)) for index, first in zip(order, first_of, strict=True) if index != first)


def check_records(
    data_path: str | Path | Sequence[str | Path],
    image_folder: str | Path | Sequence[str | Path] | None,
    template: str,
    *,
    weights: Sequence[float] | None = None,
    seed: int = 0,
    skip_bad: bool = False,
) -> TrainingRecords:
    """Opens training data and checks every record, without a model, unless that was done before: 20 s for 665k records.

    Checked are the turns, that each ``<image>`` has its image and the file is there, and, for up to 1,000 records
    spread over the data, that the images decode. What was found is kept; see `llava_s2.data.verdict`.

    Args:
        data_path: one or several, each of a kind that `read_records` knows.
        image_folder: where images are, see `ImageFiles`; one for all, or one for each of ``data_path``.
        template: see `find_template`.
        weights, seed: see `Mix`.
        skip_bad: to put another record in the place of a bad one, rather than to raise.

    Raises:
        InputError: naming the first record at fault and how many there are.
    """
    paths = [data_path] if isinstance(data_path, str | Path) else list(data_path)
    folders: list[Any] = [image_folder] if isinstance(image_folder, str | Path | None) else list(image_folder)
    if len(folders) not in (1, len(paths)):
        raise InputError(f"{len(folders)} image folders for {len(paths)} data files; give one, or one for each file")
    if weights is not None and (len(weights) != len(paths) or not all(0 <= weight < 1e6 for weight in weights)):
        raise InputError(f"--data_weights: {len(paths)} numbers, 0 or more, one for each of --data_path")
    folders = folders * len(paths) if len(folders) == 1 else folders
    chat_template = find_template(template)
    parts = []
    for path, folder in zip(paths, folders, strict=True):
        parts.append(check_source(path, folder, chat_template, tolerant=skip_bad))
        if parts[-1].verdict.faults and not skip_bad:
            raise InputError(_first_fault(parts[-1]))
    records = Mix([Source(part.records, part.files) for part in parts], weights, seed)
    verdicts = [part.verdict for part in parts]
    # Of one source they stay where they are, mapped into memory.
    columns = verdicts[0].columns if len(parts) == 1 else np.concatenate([each.columns for each in verdicts], axis=1)
    starts = np.cumsum([0, *(len(part.records) for part in parts)]).tolist()
    faults: dict[int, ValidationError] = {}
    for start, verdict in zip(starts, verdicts, strict=False):
        faults |= {start + index: fault for index, fault in verdict.faults.items()}
    if not all(verdict.images_opened for verdict in verdicts):
        _open_some(records, faults, skip_bad)
    positions, bad = _replace(records, faults)
    notices = [notice for verdict in verdicts for notice in verdict.notices]
    if weights is not None or bad:
        columns = columns[:, positions]
    lengths, before, bytes_before, images, size = columns
    known_by = [*(part.known_by for part in parts), weights, seed]
    return TrainingRecords(records, lengths, before, bytes_before, images, size, known_by, notices, bad)


def _open_some(records: Mix, faults: dict[int, ValidationError], skip_bad: bool) -> None:
    """Opens the images of up to 1,000 records spread over the data; adds what is wrong to ``faults``, or raises it."""
    sample = np.linspace(0, len(records) - 1, min(len(records), _IMAGES_DECODED_AHEAD)).astype(int)
    for index in tqdm(sample.tolist(), desc="checking images", delay=2):
        if records.position(index) in faults:
            continue
        try:
            records.open_images(index)
        except ValidationError as fault:
            if not skip_bad:
                raise InputError(f"{records.where(index)}: {fault}") from None
            faults[records.position(index)] = fault


def _replace(records: Mix, faults: dict[int, ValidationError]) -> tuple[np.ndarray, list[BadRecord]]:
    """Puts a good record in the place of each bad one, the same in every run. Returns where all records stand then."""
    positions = records.positions()
    if not faults:
        return positions, []
    at_fault = np.isin(positions, np.fromiter(faults, np.int64, len(faults)))
    good = np.unique(positions[~at_fault])
    if not len(good):
        first = int(positions[0])
        raise InputError(f"{records.where(0)}: {faults[first]} (and no other record is any better)")
    bad, positions = [], positions.copy()
    for index in np.flatnonzero(at_fault).tolist():
        position = int(positions[index])
        where = records.where(index)
        positions[index] = good[position % len(good)]
        bad.append((position, where, index))
    if not bad:
        return positions, []
    records.choose(positions)
    return positions, [
        BadRecord(position, where, str(faults[position]), records.where(index)) for position, where, index in bad
    ]


def _first_fault(part: _Part) -> str:
    faults = part.verdict.faults
    index = min(faults)
    message = f"{part.records.where(index)}: {faults[index]}"
    if len(faults) == 1:
        return message
    kinds = Counter(fault.kind for fault in faults.values())
    told = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    images = "" if part.image_folder is None else f" --images {part.image_folder}"
    return (
        f"{message} ({len(faults)} records of {len(part.records)} are at fault: {told}; "
        f"llava-s2 data check {part.path}{images} lists them all, with --fix FILE it writes the others)"
    )
