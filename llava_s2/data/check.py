"""A training file looked at whole before a GPU is rented: what is wrong with which record, and how long all are."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import LlavaProcessor

from llava_s2.data.conversation import encode_record
from llava_s2.data.image_files import ImageFiles
from llava_s2.data.json_records import Records
from llava_s2.data.record_shapes import unread_of
from llava_s2.data.sources import Reader, read_records
from llava_s2.data.training_records import check_source, describe_unread, repeated
from llava_s2.data.unread import unread_links
from llava_s2.data.validate_record import validate_record
from llava_s2.data.validation_error import KINDS, ValidationError
from llava_s2.errors import InputError
from llava_s2.files import atomic_write
from llava_s2.model.labels import IGNORE_INDEX
from llava_s2.model.templates import check_keeps_words, find_template

_CHUNK = 16  # records that a worker validates in one go


@dataclass
class FaultyRecord:
    """One fault of one record.

    Attributes:
        index: from 0; None of what stands between records.
        id: the record's, if it has one.
        line: from 1; None in files that have no lines.
        message: what is wrong.
        excess: tokens over the maximum length; of ``too_long`` alone.
    """

    index: int | None
    id: Any
    line: int | None
    message: str
    excess: int | None = None


@dataclass
class Check:
    """What a file's check found.

    Attributes:
        records: how many there are, broken ones included.
        faults: kind -> faults of that kind, in order; a record has one of a kind at most. Every kind is there.
        lengths: int64 (records,): tokens of each as training makes them; -1 of what has none.
        ignored: kinds that are listed and do not count.
        with_images: records that name images; the others that can be read are text alone.
        unread_keys: keys that are not read -> how many records have them.
    """

    records: int
    faults: dict[str, list[FaultyRecord]]
    lengths: np.ndarray
    ignored: Sequence[str] = ()
    with_images: int = 0
    unread_keys: Counter[str] = field(default_factory=Counter)
    reader: Any = field(default=None, repr=False)

    @property
    def bad(self) -> set[int | None]:
        """Indices of the records with a fault that counts; None among them where there is one between records."""
        counted = [found for kind, found in self.faults.items() if kind not in self.ignored]
        return {fault.index for fault in chain.from_iterable(counted)}


@dataclass
class _Checked:
    """What a worker found in one record; its length is -1 where it cannot be told."""

    index: int
    id: Any
    length: int
    has_images: bool
    faults: list[tuple[str, str, int | None]]
    unread_keys: list[str] = field(default_factory=list)


class _Chunks(Dataset[list[_Checked]]):
    """Validates records, some at a time: index, id, length and faults of each."""

    def __init__(
        self, reader: Reader, files: ImageFiles, processor: LlavaProcessor | None, chat_template: str, max_length: int
    ) -> None:
        self.reader, self.files, self.processor = reader, files, processor
        self.chat_template, self.max_length = chat_template, max_length

    def __len__(self) -> int:
        return -(-len(self.reader) // _CHUNK)

    def __getitem__(self, chunk: int) -> list[_Checked]:
        start = chunk * _CHUNK
        return [self._validate(index) for index in range(start, min(start + _CHUNK, len(self.reader)))]

    def _validate(self, index: int) -> _Checked:
        try:
            record = self.reader[index]
        except ValidationError as fault:
            return _Checked(index, None, -1, False, [(fault.kind, str(fault), None)])
        found = validate_record(record, self.chat_template, self.files, decode=True)
        length = -1
        if self.processor is not None and found.messages is not None:
            try:
                encoded = encode_record(record, self.processor, self.chat_template)
                length = len(encoded["input_ids"])
            except ValidationError as fault:
                found.add(fault)
        faults: list[tuple[str, str, int | None]] = [(fault.kind, str(fault), None) for fault in found.faults]
        if length >= 0:
            excess = length - self.max_length
            if excess > 0:
                faults.append(("too_long", f"{length} tokens, {excess} more than {self.max_length}", excess))
                if all(label == IGNORE_INDEX for label in encoded["labels"][: self.max_length]):
                    faults.append(("no_target", f"no target within its first {self.max_length} tokens", None))
        unread, in_turns = ({}, []) if found.error else unread_of(record)
        in_turns += unread_links(found.messages or [])
        return _Checked(index, record.get("id"), length, bool(found.images), faults, [*unread, *in_turns])


def check_file(
    path: str | Path,
    images: str | Path | None,
    processor: LlavaProcessor | None,
    *,
    template: str = "vicuna_v1",
    max_length: int = 2048,
    workers: int = 0,
    ignored: Sequence[str] = (),
) -> Check:
    """Looks at every record of a file and every image that it names; it does not stop at a fault.

    What training would look for is kept, so that a run on the same file need not: see `llava_s2.data.verdict`.

    Args:
        path: of any kind that `read_records` knows.
        images: where the images are, see `ImageFiles`.
        processor: to count tokens with; None leaves lengths out.
        template, max_length: as in training.
        workers: processes that open images and count tokens; 0 for this one alone.
        ignored: kinds that do not count.

    Raises:
        InputError: there is no such file or image folder, or nothing in it can be read.
    """
    reader = read_records(path, tolerant=True)
    chat_template = find_template(template, None if processor is None else processor.tokenizer.chat_template)
    check_keeps_words(chat_template)
    chunks = _Chunks(reader, ImageFiles(images), processor, chat_template, max_length)
    # Chunks come in order, whichever process looked at them; None: they are no tensors to be stacked.
    loader = DataLoader(chunks, batch_size=None, num_workers=min(workers, len(chunks)), collate_fn=_same)
    faults: dict[str, list[FaultyRecord]] = {kind: [] for kind in KINDS}
    lengths = np.full(len(reader), -1, np.int64)
    ids = np.zeros(len(reader), np.int64)
    has_id = np.zeros(len(reader), bool)
    with_images, unread = 0, Counter[str]()
    with tqdm(total=len(reader), desc="checking records", unit="record") as bar:
        for chunk in loader:
            for each in chunk:
                lengths[each.index] = each.length
                has_id[each.index] = each.id is not None
                ids[each.index] = hash(each.id if isinstance(each.id, str | int) else str(each.id))
                with_images += each.has_images
                unread.update(each.unread_keys)
                for kind, message, excess in each.faults:
                    faults[kind].append(FaultyRecord(each.index, each.id, None, message, excess))
            bar.update(len(chunk))
    with_id = np.flatnonzero(has_id)
    for later, earlier in repeated(ids[with_id]):
        index, first = int(with_id[later]), int(with_id[earlier])
        record, other = reader[index], reader[first]
        same = "in all" if record == other else "but not in the rest"
        message = f"the id of record {first}, which it equals {same}"
        faults["duplicate_id"].append(FaultyRecord(index, record.get("id"), None, message))
    if isinstance(reader, Records):
        named = sorted({fault.index for found in faults.values() for fault in found if fault.index is not None})
        line_of = dict(zip(named, reader.lines(named), strict=True))
        for fault in chain.from_iterable(faults.values()):
            fault.line = None if fault.index is None else line_of[fault.index]
        faults["malformed"] += [FaultyRecord(None, None, line, text) for line, text in reader.misplaced_lines()]
    all_opened = not faults["missing_image"] and not faults["corrupt_image"]
    check_source(path, images, chat_template, tolerant=True, images_opened=all_opened)
    return Check(len(reader), faults, lengths, ignored, with_images, unread, reader)


def _same(chunk: Any) -> Any:
    return chunk


def write_clean(check: Check, path: str | Path, out: Path) -> int:
    """Writes the records without a fault that counts to a file of the same kind, whole or not at all.

    Returns:
        How many they are.

    Raises:
        InputError: the file is neither JSON nor JSON lines, or no record is left.
    """
    reader = check.reader
    if not isinstance(reader, Records):
        raise InputError(f"--fix writes JSON and JSON lines, and {path} is neither; drop the records that are listed")
    good = [index for index in range(check.records) if index not in check.bad]
    if not good:
        raise InputError(f"{path}: no record is without fault, so --fix writes nothing")
    with atomic_write(out) as partial, partial.open("wb") as file:
        for number, index in enumerate(good):
            record = reader.raw(index)
            if reader.is_array:
                file.write((b",\n" if number else b"[\n") + record)
            else:  # a record may stand on several lines there
                file.write(json.dumps(json.loads(record), ensure_ascii=False).encode() + b"\n")
        file.write(b"\n]\n" if reader.is_array else b"")
    return len(good)


def histogram(lengths: np.ndarray, bins: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Counts (bins,) and whole-number edges (bins + 1,) of the lengths that are known, in bins of one width."""
    known = lengths[lengths >= 0]
    width = max(1, -(-int(known.max(initial=0) + 1) // bins))
    edges = np.arange(bins + 1) * width
    return np.histogram(known, edges)[0], edges


def report(check: Check, **told: Any) -> dict[str, Any]:
    """The check as JSON values; ``told`` stands first."""
    known = check.lengths[check.lengths >= 0]
    lengths: dict[str, Any] | None = None
    if len(known):
        counts, edges = histogram(check.lengths)
        lengths = {f"p{share}": int(np.percentile(known, share)) for share in (50, 90, 99)}
        lengths |= {"mean": round(float(known.mean()), 1), "max": int(known.max())}
        lengths |= {"histogram": {"edges": edges.tolist(), "counts": counts.tolist()}}
    return {
        **told,
        "records": check.records,
        "good": check.records - len(check.bad - {None}),
        "with_images": check.with_images,
        "unread_keys": dict(check.unread_keys),
        "ignored": list(check.ignored),
        "faults": {
            kind: {
                "count": len(found),
                "records": [
                    {name: value for name, value in vars(fault).items() if value is not None} for fault in found
                ],
            }
            for kind, found in check.faults.items()
        },
        "lengths": lengths,
    }


def tell(check: Check, shown: int = 5) -> Iterator[str]:
    """The lines to print: a table of faults with the first of each kind, and the histogram."""
    width = max(map(len, KINDS))
    yield f"{check.records:,} records, {check.records - len(check.bad - {None}):,} without fault"
    yield f"{check.with_images:,} records with images, {check.records - check.with_images:,} text alone"
    if check.unread_keys:
        yield f"keys that are not read: {describe_unread(check.unread_keys)}"
    for kind, found in check.faults.items():
        if not found:
            continue
        note = " (ignored)" if kind in check.ignored else ""
        yield f"\n{kind:<{width}}  {len(found):>8,}  {KINDS[kind]}{note}"
        for fault in found[:shown]:
            places = [] if fault.index is None else [f"record {fault.index}"]
            places += [] if fault.id is None else [f"id {fault.id!r}"]
            places += [] if fault.line is None else [f"line {fault.line}"]
            yield f"  {', '.join(places)}: {fault.message}"
        if len(found) > shown:
            yield f"  … and {len(found) - shown:,} more"
    if (check.lengths >= 0).any():
        counts, edges = histogram(check.lengths)
        yield "\ntokens       records"
        for count, low, high in zip(counts.tolist(), edges[:-1], edges[1:], strict=True):
            bar = "█" * -(-40 * count // max(1, counts.max()))
            yield f"{low:>5}-{high - 1:<5}  {count:>8,}  {bar}"


def plot_lengths(check: Check, max_length: int, file: Path) -> None:
    """Draws the histogram and the maximum length as a PNG."""
    from matplotlib.figure import Figure

    counts, edges = histogram(check.lengths, 50)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="tokens of a record, its images' included", ylabel="records")
    axes.stairs(counts, edges, fill=True)
    axes.axvline(max_length, color="black", linestyle="--", linewidth=1, label=f"maximum length {max_length}")
    axes.legend()
    with atomic_write(file) as partial:
        figure.savefig(partial, format="png", dpi=120)
