"""Records of JSON, Parquet, TSV and Excel files; images inside them are left there until they are needed.

Text files may be compressed (``.gz``), and in UTF-16 or with a byte order mark, as Excel and PowerShell write them.
"""

import atexit
import base64
import binascii
import codecs
import csv
import gzip
import json
import re
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from llava_s2.data.image_decoding import Embedded
from llava_s2.errors import InputError
from llava_s2.eval.schema import Record

_SHORTEST_IMAGE = 64  # characters; a shorter cell names a file, or the row that has the image
_DELIMITERS = {".tsv": "\t", ".csv": ","}
_GZIP = b"\x1f\x8b"
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
"""How a text file begins that says which encoding it has -> the encoding."""


def find_file(data: Path, names: Sequence[str], what: str = "") -> list[Path]:
    """The files of the first pattern that matches any in the folder: one file, or all the shards of a Parquet split.

    Args:
        data: a benchmark's data folder.
        names: patterns, such as ``MMStar.tsv`` or ``val-*.parquet``; tried in the folder and in its ``data/``.
        what: is named in the error.

    Raises:
        InputError: no such folder or file, or some shards are missing.
    """
    if not data.is_dir():
        raise InputError(f"{data}: no such folder; --data names the folder that holds {' or '.join(names)}")
    for name in names:
        if paths := matches(data, name):
            return _whole_split(paths) if paths[0].suffix == ".parquet" else paths[:1]
    raise InputError(f"{data}: holds none of {', '.join(names)}{what}; docs/data.md says where it comes from")


def matches(data: Path, name: str) -> list[Path]:
    """The files of a pattern in a folder, its ``data/`` or ``default/``, sorted; compressed ones where others lack.

    ``SPLIT-*.parquet`` is also ``SPLIT/0000.parquet``, as the hub converts data sets.
    """
    kinds = (name, f"{name}.gz", *([name.replace("-*.", "/*.")] if name.endswith("-*.parquet") else []))
    folders = (data, data / "data", data / "default")
    return next((found for kind in kinds for folder in folders if (found := sorted(folder.glob(kind)))), [])


def read_records(path: Path, field: str | None = None, images: Sequence[str] = ()) -> list[Record]:
    """The records of a file, by its suffix ``.json``, ``.parquet``, ``.tsv``, ``.csv`` or ``.xlsx``, perhaps before a
    ``.gz``; any other is JSON lines.

    Args:
        path: the file.
        field: of a JSON file that is an object, where the list of records is.
        images: columns of Parquet and TSV files that hold images. Each becomes an ``Embedded``, a tuple of them, or
            None; a column of file names stays one of texts.

    Raises:
        InputError: the file cannot be read, is something else, or holds no record.
    """
    suffix = _suffix(path)
    if suffix == ".parquet":
        records = _parquet(path, images)
    elif suffix in _DELIMITERS:
        records = _tsv(path, images)
    elif suffix == ".xlsx":
        records = _workbook(path)
    elif suffix != ".json" or (field is None and _is_json_lines(path)):
        records = _json_lines(path)
    else:
        value = read_value(path)
        value = value.get(field) if field is not None and isinstance(value, dict) else value
        if not isinstance(value, list) or not all(isinstance(record, dict) for record in value):
            place = f"'{field}' must be" if field else "must hold"
            raise InputError(f"{path}: {place} a list of objects, at least one")
        records = [Record(record, f"{path}, record {number}") for number, record in enumerate(value, start=1)]
    if not records:
        raise InputError(f"{path}: holds no record, but must hold at least one")
    return records


def read_value(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        InputError: no such file, or it is not JSON.
    """
    try:
        return _parsed(_in_utf8(path).read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except ValueError as error:  # also a text that is not UTF-8
        raise InputError(f"{path}: not valid JSON ({error})") from None


def _parsed(raw: bytes) -> Any:
    """JSON's value; half of a surrogate pair, which no UTF-8 file can hold, becomes a question mark."""
    value = json.loads(raw)
    if b"\\ud" in raw or b"\\uD" in raw:
        value = json.loads(json.dumps(value, ensure_ascii=False).encode(errors="replace"))
    return value


def _suffix(path: Path) -> str:
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix


def _in_utf8(path: Path) -> Path:
    """The file itself, if it is plain UTF-8 without a mark; else a copy of it that is, removed when the program ends.

    Raises:
        OSError: it cannot be read, or is compressed and damaged.
        UnicodeDecodeError: it begins as UTF-16 and is not.
    """
    with path.open("rb") as file:
        start = file.read(4)
    if start[:2] != _GZIP and not start.startswith(tuple(_MARKS)):
        return path
    return _copy(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _copy(path: Path, written: int) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="llava-s2-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    name = path
    for step in (_unzip, _recode):
        made = folder / step.__name__
        name = made if step(name, made) else name
    return name


def _unzip(path: Path, target: Path) -> bool:
    with path.open("rb") as file:
        if file.read(2) != _GZIP:
            return False
    try:
        with gzip.open(path) as packed, target.open("wb") as out:
            shutil.copyfileobj(packed, out)
    except (EOFError, zlib.error) as error:
        raise OSError(f"a damaged gzip file: {error}") from None
    return True


def _recode(path: Path, target: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(4)
    encoding = next((name for mark, name in _MARKS.items() if start.startswith(mark)), None)
    if encoding is not None:
        with path.open(encoding=encoding, newline="") as text, target.open("w", encoding="utf-8", newline="") as out:
            shutil.copyfileobj(text, out)
    return encoding is not None


def _is_json_lines(path: Path) -> bool:
    """Whether a ``.json`` file has an object a line, as POPE's label files do."""
    try:
        with _in_utf8(path).open("rb") as file:
            first = file.readline().strip()
            second = file.readline().strip()
            return first.startswith(b"{") and first.endswith(b"}") and (not second or second.startswith(b"{"))
    except (OSError, UnicodeDecodeError):
        return False


def _json_lines(path: Path) -> list[Record]:
    try:
        raw = _in_utf8(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not valid UTF-16 ({error})") from None
    records = []
    for number, line in enumerate(raw.splitlines(), start=1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            value = _parsed(line)
        except ValueError as error:
            raise InputError(f"{where}: not valid JSON ({error})") from None
        if not isinstance(value, dict):
            raise InputError(f"{where}: must be a JSON object")
        records.append(Record(value, where))
    return records


def _whole_split(paths: list[Path]) -> list[Path]:
    """The paths; InputError unless all shards are there of each split, which a folder and the start of a name tell."""
    splits: dict[tuple[Path, str], list[int]] = {}
    for path in paths:
        if found := re.match(r"(.*)-\d+-of-(\d+)", path.name):
            splits.setdefault((path.parent, found[1]), []).append(int(found[2]))
    for (folder, name), totals in splits.items():
        if totals[0] != len(totals):
            raise InputError(f"{folder}: {len(totals)} of the {totals[0]} files {name}-*; download the others")
    return paths


def _parquet(path: Path, images: Sequence[str]) -> list[Record]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise InputError('reading Parquet files takes pyarrow: pip install "llava-s2[eval]"') from None
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            held = {}
            for name in images:
                if name in schema.names and (counts := _held(file, name)) is not None:
                    held[name] = counts
            plain = [name for name in schema.names if name not in held and "binary" not in str(schema.field(name).type)]
            rows = file.read(columns=plain).to_pylist()
            groups = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: cannot be read as Parquet ({error})") from None
    places = [(group, offset) for group, count in enumerate(groups) for offset in range(count)]
    records = []
    for number, (row, (group, offset)) in enumerate(zip(rows, places, strict=True)):
        where = f"{path}, row {number + 1}"
        for name, counts in held.items():
            row[name] = _embedded(f"{where}, {name}", counts[number], partial(_parquet_cell, path, group, offset, name))
        records.append(Record(row, where))
    return records


def _held(file: Any, name: str) -> list[int | None] | None:
    """How many images each row has in a column: None for none, -1 for one; None in all if the column holds none."""
    import pyarrow as pa

    kind, part = file.schema_arrow.field(name).type, name
    if pa.types.is_struct(kind):
        if kind.get_field_index("bytes") < 0:
            return None
        if kind.get_field_index("path") >= 0:
            part = f"{name}.path"  # the images' bytes are left where they are
    counts: list[int | None] = []
    for group in range(file.num_row_groups):
        column = file.read_row_group(group, columns=[part]).column(name)
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            first = next((text for cell in column if cell.is_valid and (text := cell.as_py())), "")
            if len(first) <= _SHORTEST_IMAGE:
                return None
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            counts += [len(cell) if cell.is_valid and len(cell) else None for cell in column]
        else:
            counts += [-1 if cell.is_valid else None for cell in column]
    return counts


@lru_cache(maxsize=4)
def _parquet_column(path: Path, written: int, group: int, column: str) -> Any:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        return file.read_row_group(group, columns=[column]).column(column)


def _parquet_cell(path: Path, group: int, offset: int, column: str) -> Any:
    import pyarrow as pa

    try:
        return _parquet_column(path, path.stat().st_mtime_ns, group, column)[offset].as_py()
    except (OSError, pa.ArrowException) as error:  # damaged, or replaced while it was in use
        raise InputError(f"{path}: {column} cannot be read as Parquet ({error}); download it again") from None


def _tsv(path: Path, images: Sequence[str]) -> list[Record]:
    """VLMEvalKit's tables: an image is base64 text, a list of such, or the index of the row that has it."""
    records = []
    places: dict[str, tuple[int, int, int]] = {}  # index -> where its row stands, and how many images it has
    limit = csv.field_size_limit(sys.maxsize)
    try:
        plain, delimiter = _in_utf8(path), _DELIMITERS[_suffix(path)]
        with plain.open("rb") as file:
            rows = _located_rows(file, delimiter)
            _, _, columns = next(rows, (0, 0, []))
            shown = [name for name in images if name in columns]
            for number, (start, end, cells) in enumerate(rows, start=1):
                if len(cells) > len(columns):
                    raise InputError(f"{path}, row {number}: {len(cells)} cells under {len(columns)} columns")
                row: dict[str, Any] = dict(zip(columns, [*cells, *[""] * len(columns)], strict=False))
                for name in shown:
                    cell = row[name]
                    if len(cell) > _SHORTEST_IMAGE:
                        count = cell.count(",") + 1 if cell.startswith("[") else -1
                        places.setdefault(row.get("index", str(number)), (start, end, count))
                        row[name] = (start, end, count)
                records.append(Record(row, f"{path}, row {number}"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as a TSV file ({error})") from None
    finally:
        csv.field_size_limit(limit)
    for record in records:
        for name in shown:
            place = record[name] if isinstance(record[name], tuple) else places.get(record[name])
            if place is None:
                record[name] = record[name] if Path(record[name]).suffix else None
                continue
            start, end, count = place
            read = partial(_tsv_cell, plain, delimiter, start, end, columns.index(name))
            record[name] = _embedded(f"{record.where}, {name}", count, read)
    return records


def _workbook(path: Path) -> list[Record]:
    """VLMEvalKit's predictions; every cell is a text."""
    try:
        from openpyxl import load_workbook
    except ImportError:
        raise InputError(f'{path}: reading it takes openpyxl: pip install "llava-s2[eval]"') from None
    try:
        rows = load_workbook(path, read_only=True).worksheets[0].iter_rows(values_only=True)
        names = [str(name) for name in next(rows)]
    except (OSError, ValueError, KeyError, StopIteration, BadZipFile) as error:
        raise InputError(f"{path}: cannot be read as an Excel file ({error})") from None
    cells = (("" if cell is None else str(cell) for cell in row) for row in rows)
    records = [dict(zip(names, row, strict=False)) for row in cells]
    return [Record(fields, f"{path}, row {number}") for number, fields in enumerate(records, start=2)]


def _located_rows(file: Any, delimiter: str) -> Iterator[tuple[int, int, list[str]]]:
    """The rows of a TSV file, with the bytes that each begins and ends at."""
    position = 0

    def lines() -> Iterator[str]:
        nonlocal position
        for line in file:
            position += len(line)
            yield line.decode()

    start = 0
    for row in csv.reader(lines(), delimiter=delimiter):
        if row:
            yield start, position, row
        start = position


def _tsv_cell(path: Path, delimiter: str, start: int, end: int, column: int) -> Any:
    with path.open("rb") as file:
        file.seek(start)
        text = file.read(end - start).decode()
    limit = csv.field_size_limit(sys.maxsize)
    try:
        lines = (f"{line}\n" for line in text.split("\n"))  # as above; str.splitlines ends them elsewhere, too
        cell = next(csv.reader(lines, delimiter=delimiter))[column]
    finally:
        csv.field_size_limit(limit)
    return re.sub(r"\\[nrt]|[\s'\"\[\]]", "", cell).split(",") if cell.startswith("[") else cell


def _embedded(name: str, count: int | None, read: Callable[[], Any]) -> Embedded | tuple[Embedded, ...] | None:
    """One image (``count`` is -1), several, or none (None)."""
    if count is None:
        return None
    if count < 0:
        return Embedded(name, lambda: _image_bytes(read(), name))
    return tuple(
        Embedded(f"{name} {place + 1}", lambda place=place: _image_bytes(read()[place], name))  # type: ignore[misc]
        for place in range(count)
    )


def _image_bytes(value: Any, name: str) -> bytes:
    if isinstance(value, dict):
        value = value.get("bytes")
    if isinstance(value, str):
        try:
            value = base64.b64decode("".join(value.split()), validate=True)  # some files wrap it over lines
        except binascii.Error as error:
            raise InputError(f"{name}: not base64 ({error})") from None
    if not value:
        raise InputError(f"{name}: no image bytes")
    return value
