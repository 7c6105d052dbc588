"""JSON training files, read one record at a time.

A file is one JSON array of records, an object that holds such an array (``{"data": [...]}``) or the records by their
ids, or JSON lines; which one is seen from how it begins, not from its name. One compressed with gzip, bzip2 or xz is
unpacked to the cache folder first. One pass finds where each record starts and ends; that is kept in the cache folder,
and a record costs one seek.
"""

import bz2
import gzip
import json
import lzma
import re
import shutil
import zlib
from array import array
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from llava_s2.data.cache import WORTH_KEEPING, cached, place_of, remember_array, state
from llava_s2.data.record_shapes import is_record
from llava_s2.data.validation_error import ValidationError
from llava_s2.errors import InputError

_WINDOW = 1 << 22  # characters decoded ahead
_LONGEST = 1 << 26  # characters of a record, so that one bracket left open does not take in the rest of the file
_BLANK = " \t\r\n"
_OBJECT = re.compile(r'\{\s*"')
_OTHER_BYTES = re.compile("[\udc80-\udcff]")
_decode = json.JSONDecoder().raw_decode


class Records(Sequence[dict[str, Any]]):
    """Lazy random access to the records of a LLaVA file (``[{"id", "image", "conversations"}, …]`` or JSON lines).

    Args:
        path: the file.
        visit: called with the index and the value of every record, in order, during a pass over the file.
        tolerant: to go on behind what is no record, which then is a number of ``broken`` and raises where it is read.

    Attributes:
        broken: index of what is no record -> what is wrong with it.
        misplaced: what is wrong between records, commas and brackets: (byte, message).

    Raises:
        InputError: no such file, not JSON, not UTF-8, cut off, without any record, or a record is no JSON object.
    """

    def __init__(
        self, path: str | Path, visit: Callable[[int, dict[str, Any]], None] | None = None, tolerant: bool = False
    ) -> None:
        self.path = Path(path)
        self._file = self.path
        self.broken: dict[int, str] = {}
        self.misplaced: list[tuple[int, str]] = []
        self._passed = (0, 1)  # a byte and its line, from which later ones are counted
        starts, ends = array("q"), array("q")
        if not self.path.is_file():
            raise InputError(f"{self.path}: no such data file")
        with self.path.open("rb") as file:
            opener = next((each for magic, each in _PACKED.items() if file.peek(8).startswith(magic)), None)
        if opener is not None:
            self._file = cached("unpacked", [self.path], partial(_unpack, self.path, opener))
        index_file = place_of("json-records", state(self._file))
        if visit is None and index_file.exists():
            self._starts, self._ends = np.load(index_file, mmap_mode="r")
            return
        for start, end, record in _scan(self.path, self._file, self.misplaced.append if tolerant else None):
            index = len(starts)
            starts.append(start)
            ends.append(end)
            if isinstance(record, _Broken):
                self.broken[index] = str(record)
            elif not isinstance(record, dict):
                message = f"not a JSON object but {type(record).__name__}"
                if not tolerant:
                    raise InputError(f"{self.path}: record {index} (line {_line(self._file, start)}): {message}")
                self.broken[index] = message
            elif visit is not None:
                visit(index, record)
        if not starts:
            raise InputError(f"{self.path}: holds no records")
        self._starts, self._ends = np.frombuffer(starts, np.int64), np.frombuffer(ends, np.int64)
        if len(self) >= WORTH_KEEPING and not self.broken and not self.misplaced:
            remember_array(index_file, np.stack([self._starts, self._ends]))

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> dict[str, Any]:  # type: ignore[override]  # no slices
        index = range(len(self))[index]
        if index in self.broken:
            raise ValidationError("malformed", self.broken[index])
        try:
            return json.loads(self.raw(index))
        except ValueError as error:
            raise InputError(f"{self.path}: changed while it was in use (record {index}: {error})") from None

    def misplaced_lines(self) -> list[tuple[int, str]]:
        """What is wrong between records: line and message."""
        return [(_line(self._file, byte), message) for byte, message in self.misplaced]

    @property
    def is_array(self) -> bool:
        """Whether the file is one JSON value; else it is JSON lines."""
        return _layout(self.path, self._file)[0] != _LINES

    def raw(self, index: int) -> bytes:
        """The record's JSON as it stands in the file."""
        start, end = int(self._starts[index]), int(self._ends[index])
        try:
            with self._file.open("rb") as file:
                file.seek(start)
                return file.read(end - start)
        except OSError as error:
            raise InputError(f"{self.path}: changed while it was in use (record {index}: {error})") from None

    def where(self, index: int) -> str:
        """Names a record for a message: file, index from 0, id where it has one, and line from 1."""
        record = {} if index in self.broken else self[index]
        identity = f"id {record['id']!r}, " if "id" in record else ""
        byte = int(self._starts[index])
        if byte < self._passed[0]:
            self._passed = (0, 1)
        self._passed = (byte, _line(self._file, byte, *self._passed))
        return f"{self.path}: record {index} ({identity}line {self._passed[1]})"

    def lines(self, indices: Sequence[int]) -> list[int]:
        """The lines that records begin in, given in ascending order; one pass over the file for all of them."""
        lines, byte, line = [], 0, 1
        for index in indices:
            start = int(self._starts[index])
            byte, line = start, _line(self._file, start, byte, line)
            lines.append(line)
        return lines


class _Broken(Exception):
    """What stands at the cursor is no JSON; ``at`` characters on it goes wrong."""

    def __init__(self, message: str, at: int = 0) -> None:
        super().__init__(message)
        self.at = at


def _scan(
    path: Path, file: Path, misplaced: Callable[[tuple[int, str]], None] | None
) -> Iterator[tuple[int, int, Any]]:
    """Yields (first byte, byte after the last, value) of each record of the file; ``path`` is its name in errors.

    With ``misplaced`` it goes on behind a fault: the value is then a `_Broken`, and what is wrong between records is
    told to ``misplaced`` with its byte.
    """
    text = _Text(path, file, tolerant=misplaced is not None)

    def wrong(message: str) -> None:
        if misplaced is None:
            raise text.error(message)
        misplaced((text.byte, message))

    layout, begin = _layout(path, file)
    text.peek()
    text.skip(begin)
    is_array = layout != _LINES
    closing = "}" if layout == _BY_ID else "]"
    count, recovered = 0, False
    while (char := text.peek()) and not (is_array and char == closing):
        if is_array and count and not recovered:
            if char != ",":
                wrong(f"a comma is missing after record {count - 1}")
            else:
                text.skip(1)
            if text.peek() == closing:
                wrong(f"a comma stands after the last record ({count - 1})")
                break
        recovered = False
        start: int = text.byte
        try:
            if layout == _BY_ID:
                text.value()
                text.colon()
            start, value = text.value()
        except _Broken as broken:
            if misplaced is None:
                text.skip(broken.at)
                raise text.error(f"record {count} is not JSON: {broken}") from None
            start, value = text.byte, _Broken(f"not JSON: {broken}")
            recovered = True
            if is_array:
                text.to_next_object()
            else:
                text.to_next_line()
        yield start, text.byte, value
        count += 1
    if is_array and not recovered:
        if not text.peek():
            wrong(f"the file ends after record {count - 1} without its closing bracket: cut off?")
            return
        text.skip(1)
        if layout == _IN_OBJECT:  # what else the object holds is not read
            if other := _other_records(text):
                wrong(
                    f"an object with records under several names, {other!r} too; write each list to a file of its own"
                )
        elif text.peek():
            wrong("something stands after the closing bracket")


def _other_records(text: "_Text") -> str | None:
    """Behind an object's list of records: the name of another one that begins with a record; None without."""
    try:
        while text.peek() == ",":
            text.skip(1)
            _, key = text.value()
            text.colon()
            if text.peek() != "[":
                text.value()
                continue
            if _begins_with_record(text):
                return str(key)
    except _Broken:
        pass
    return None


def _begins_with_record(text: "_Text") -> bool:
    """Whether the list that comes next does; moves behind its first value then, and else behind the whole list."""
    text.skip(1)
    while text.peek() not in ("]", ""):
        if is_record(text.value()[1]):
            return True
        if text.peek() == ",":
            text.skip(1)
    text.skip(1)
    return False


_LINES, _ARRAY, _IN_OBJECT, _BY_ID = range(4)


def _layout(path: Path, file: Path) -> tuple[int, int]:
    """How a file holds its records, and how many characters stand before the first."""
    text = _Text(path, file, tolerant=True, quiet=True)
    char = text.peek()
    if char == "[":
        return _ARRAY, 1
    if char != "{":
        return _LINES, 0
    passed = text.passed
    text.skip(1)
    try:
        while text.peek() == '"':
            before_key = text.passed
            _, key = text.value()
            text.colon()
            is_list = text.peek() == "["
            inside = text.passed + 1 - passed
            if key not in ("conversations", "conversation", "messages") and is_list:
                if _begins_with_record(text):
                    return _IN_OBJECT, inside
            elif is_record(text.value()[1]) and not is_list:
                return _BY_ID, before_key - passed
            if text.peek() != ",":
                break
            text.skip(1)
    except _Broken:
        pass
    return _LINES, 0


_PACKED: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}


def _unpack(path: Path, opener: Any, out: Path) -> None:
    try:
        with opener(path, "rb") as packed, out.open("wb") as file:
            shutil.copyfileobj(packed, file, _WINDOW)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise InputError(f"{path}: cannot be unpacked ({error}); fetch it again") from None


class _Text:
    """The file's text through a window that moves forward, with the byte position of the cursor."""

    def __init__(self, path: Path, file: Path, tolerant: bool, quiet: bool = False) -> None:
        self._path, self._source = path, file
        self._file = file.open("rb")
        # Bytes that are no UTF-8 become surrogates, and in a tolerant scan a fault of the record that holds them.
        self._decoder = getincrementaldecoder("utf-8")("surrogateescape" if tolerant else "strict")
        self._has_other_bytes = False
        size = file.stat().st_size
        self._bar = tqdm(
            total=size, desc=f"reading {path.name}", unit="B", unit_scale=True, delay=2, disable=quiet or None
        )
        self._window, self._at, self._ended = "", 0, False
        self.passed = 0  # characters before the cursor
        first = self._file.read(3)
        if first in (b"\x28\xb5\x2f", b"PK\x03"):
            raise InputError(f"{path}: compressed with zstd or zip; unpack it, or compress it with gzip, bzip2 or xz")
        if first[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise InputError(f"{path}: not UTF-8 text but UTF-16 (Notepad's Unicode, PowerShell's >); save it as UTF-8")
        self.byte = 3 if first == b"\xef\xbb\xbf" else 0  # a byte order mark is no part of the text
        self._file.seek(self.byte)

    def _more(self, size: int) -> None:
        try:
            data = self._file.read(size)
            self._ended = not data
            decoded = self._decoder.decode(data, final=self._ended)
        except UnicodeDecodeError:
            raise InputError(
                f"{self._path}: not UTF-8 text (near byte {self._file.tell()}); save it as UTF-8"
            ) from None
        self._has_other_bytes = self._has_other_bytes or _OTHER_BYTES.search(decoded) is not None
        self._window = self._window[self._at :] + decoded
        self._at = 0
        self._bar.update(len(data))
        if self._ended:
            self._file.close()
            self._bar.close()

    def skip(self, characters: int) -> None:
        self.byte += len(self._window[self._at : self._at + characters].encode(errors="surrogateescape"))
        self._at += characters
        self.passed += characters

    def colon(self) -> None:
        """Moves past the colon that comes next."""
        if self.peek() != ":":
            raise _Broken("Expecting ':' delimiter")
        self.skip(1)

    def peek(self) -> str:
        """Moves to the next character that is not white space and returns it; "" at the end of the file."""
        while True:
            rest = self._at
            while rest < len(self._window) and self._window[rest] in _BLANK:
                rest += 1
            self.skip(rest - self._at)
            if self._at < len(self._window):
                return self._window[self._at]
            if self._ended:
                return ""
            self._more(_WINDOW)

    def value(self) -> tuple[int, Any]:
        """Decodes the JSON value that comes next and moves past it. Returns its first byte and the value."""
        self.peek()
        while True:
            try:
                value, end = _decode(self._window, self._at)
                # A number or word that ends with the window may go on behind it; an object does not.
                if end == len(self._window) and not self._ended and not isinstance(value, dict | list):
                    self._more(_WINDOW)
                    continue
                start, passed = self.byte, self._window[self._at : end]
                if self._has_other_bytes and _OTHER_BYTES.search(passed):
                    raise _Broken("not UTF-8 text")
                self.skip(end - self._at)
                return start, value
            except json.JSONDecodeError as error:
                unfinished = error.msg.startswith("Unterminated string") or error.pos >= len(self._window) - 16
                if unfinished and not self._ended and len(self._window) - self._at < _LONGEST:
                    self._more(max(_WINDOW, len(self._window)))
                    continue
                hint = " (is the file cut off, or a quote or bracket not closed?)" if unfinished else _hint(error)
                raise _Broken(f"{error.msg}{hint}", error.pos - self._at) from None
            except RecursionError:
                raise _Broken("nested too deeply") from None

    def to_next_line(self) -> None:
        """Moves behind the end of the line."""
        while (end := self._window.find("\n", self._at)) < 0:
            self.skip(len(self._window) - self._at)
            if self._ended:
                return
            self._more(_WINDOW)
        self.skip(end + 1 - self._at)

    def to_next_object(self) -> None:
        """Moves from a broken record of an array to the next object that looks like a record, or to the end."""
        self.skip(1)
        while True:
            found = _OBJECT.search(self._window, self._at)
            if found is None:
                self.skip(max(0, len(self._window) - self._at - (0 if self._ended else 16)))
                if self._ended:
                    return
                self._more(_WINDOW)
                continue
            self.skip(found.start() - self._at)
            while not self._ended and len(self._window) - self._at < _WINDOW:
                self._more(_WINDOW)
            try:
                value, _ = _decode(self._window, self._at)
                if is_record(value):
                    return
            except (json.JSONDecodeError, RecursionError):
                pass
            self.skip(1)

    def error(self, message: str) -> InputError:
        return InputError(f"{self._path}: line {_line(self._source, self.byte)}: {message}")


def _hint(error: json.JSONDecodeError) -> str:
    """What people write who get this error."""
    if error.msg.startswith("Invalid \\escape"):
        return " (in JSON a backslash is written twice; paths are best written with /)"
    if error.msg.startswith("Invalid control character"):
        return " (a line break inside a text is written \\n)"
    if error.msg.startswith("Expecting value") and error.doc[error.pos : error.pos + 1] not in ("", "]", "}", ","):
        return ' (a data file is a JSON array of records, or one record {"image": …, "conversations": […]} a line)'
    return ""


def _line(path: Path, byte: int, before: int = 0, line: int = 1) -> int:
    """Returns the number of the line that holds a byte, given that of one before it."""
    with path.open("rb") as file:
        file.seek(before)
        while byte > before and (data := file.read(min(byte - before, _WINDOW))):
            line, before = line + data.count(b"\n"), before + len(data)
    return line
