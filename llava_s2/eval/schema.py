"""Records of data files whose fields are read with checks, so that an error names file, record and field."""

import ast
import json
from collections.abc import Mapping, Sequence
from typing import Any

from llava_s2.data.image_decoding import Embedded
from llava_s2.errors import InputError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_ABSENT = ("", "nan")


class Record(dict[str, Any]):
    """A record: a dictionary of its fields that knows where it stands.

    Its methods return a field of one type. Several names are tried in order, for releases that name a field
    differently. All raise InputError where no such field holds what is asked for.

    Args:
        fields: name -> value.
        where: file and record, for errors.
    """

    def __init__(self, fields: Mapping[str, Any], where: str) -> None:
        super().__init__(fields)
        self.where = where

    def fault(self, message: str) -> InputError:
        """An error about this record, to be raised."""
        return InputError(f"{self.where}: {message}")

    def first(self, *names: str) -> Any:
        """The value of the first name that the record has; None if it has none or the value is absent."""
        value = next((self[name] for name in names if self.get(name) is not None), None)
        return None if isinstance(value, float) and value != value else value

    def text(self, *names: str) -> str:
        """A text that is not blank."""
        value = self.first(*names)
        if not isinstance(value, str) or not value.strip():
            raise self.fault(f"'{names[0]}' is missing or not a text")
        return value

    def prompt(self, *names: str) -> str:
        """A text that becomes part of a prompt, and so must not hold the image placeholder."""
        value = self.text(*names)
        if "<image>" in value:
            raise self.fault(f"'{names[0]}' contains <image>; the image is placed before the question")
        return value

    def optional(self, *names: str) -> str:
        """A text, or the empty text where the field is absent or says ``nan`` or ``none``."""
        value = self.first(*names)
        return value if isinstance(value, str) and value.strip().lower() not in (*_ABSENT, "none") else ""

    def number(self, *names: str) -> int:
        """A whole number."""
        value = self.first(*names)
        if isinstance(value, str) and value.strip().isdecimal():
            return int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.fault(f"'{names[0]}' is missing or not a whole number")
        return value

    def identity(self, *names: str) -> str:
        """An id, a text or a whole number, as a text."""
        value = self.first(*names)
        if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
            raise self.fault(f"'{names[0]}' must be a text or a whole number")
        return str(value)

    def one_of(self, name: str, allowed: Sequence[Any]) -> Any:
        """One of a few values."""
        value = self.first(name)
        if isinstance(value, bool) or value not in allowed:
            raise self.fault(f"'{name}' is {value!r}, not one of {', '.join(map(str, allowed))}")
        return value

    def texts(self, *names: str, count: int | None = None) -> list[str]:
        """A list of texts; also one that is written as a text, in Python or JSON; not blank if ``count`` is given."""
        found = self.first(*names)
        value = as_list(found)
        # Numbers may stand in a list that is itself a text.
        allowed = str | int | float if isinstance(found, str) else str
        if value is None or not all(isinstance(text, allowed) for text in value):
            raise self.fault(f"'{names[0]}' must be a list of texts")
        if count is not None and len(value) != count:
            raise self.fault(f"{len(value)} '{names[0]}'; there must be {count}")
        return [str(text) for text in value]

    def options(self) -> list[str]:
        """The options of a multiple-choice question: the columns A, B, … up to the last that is not empty."""
        cells = [self.first(letter) for letter in LETTERS if letter in self]
        texts = ["" if cell is None else str(cell) for cell in cells]
        # "None" is an option; but several of them in one question stand for columns that it has no use for.
        none = [text.strip().lower() == "none" for text in texts]
        while texts and (texts[-1].strip().lower() in _ABSENT or (none[len(texts) - 1] and sum(none) > 1)):
            texts.pop()
        if any(not text.strip() for text in texts):
            raise self.fault(f"no option in column {LETTERS[next(i for i, t in enumerate(texts) if not t.strip())]}")
        return texts

    def letter(self, name: str, count: int) -> str:
        """One of the first ``count`` letters, also in brackets or in lower case."""
        value = self.first(name)
        found = str(value).strip(" ().").upper() if isinstance(value, str) else ""
        if len(found) != 1 or found not in LETTERS[:count]:
            raise self.fault(f"'{name}' is {str(value)[:80]!r}, not one of the letters {LETTERS[:count]}")
        return found

    def images(self, *names: str) -> tuple[Embedded, ...]:
        """The images in these columns, in order; absent ones are left out."""
        found: list[Embedded] = []
        for name in names:
            value = self.first(name)
            found += value if isinstance(value, tuple) else [value] if isinstance(value, Embedded) else []
        return tuple(found)


def as_list(value: Any) -> list[Any] | None:
    """A list, also one that is written as a text; None for anything else."""
    if isinstance(value, str):
        for parse in (json.loads, ast.literal_eval):
            try:
                value = parse(value)
                break
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                continue
    return list(value) if isinstance(value, list | tuple) else None


def unique(ids: Sequence[str], where: object) -> None:
    """Raises InputError if an id stands twice, naming and counting those that do."""
    seen: set[str] = set()
    double = [identity for identity in ids if identity in seen or seen.add(identity)]  # type: ignore[func-returns-value]
    if double:
        raise InputError(f"{where}: {len(double)} double question id(s), such as {double[0]}")


def refuse_missing(missing: Sequence[str], count: int) -> None:
    """Raises InputError if anything is missing: what the first is, and of how many of ``count`` questions."""
    if missing:
        raise InputError(f"{missing[0]} (so for {len(missing)} of {count} questions)")
