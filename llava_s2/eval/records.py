"""Reading the JSON files that benchmarks are released as, with errors that name the record."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava_s2.errors import InputError


def choose_variant(data: Path, files: Mapping[str, str], variant: str | None) -> str:
    """The variant asked for, or the first whose file is in the folder.

    Args:
        data: a benchmark's data folder.
        files: variant -> the name of a file that it cannot be without.
        variant: one of them, or None.

    Raises:
        InputError: no such folder, or it lacks the file.
    """
    names = dict.fromkeys(files.values())
    if not data.is_dir():
        raise InputError(f"{data}: no such folder; --data names the folder that holds {' or '.join(names)}")
    if variant is None:
        variant = next((name for name, file in files.items() if (data / file).is_file()), None)
        if variant is None:
            raise InputError(f"{data}: holds none of {', '.join(names)}; docs/data.md says where it comes from")
    elif not (data / files[variant]).is_file():
        raise InputError(f"{data / files[variant]}: no such file, which variant {variant} needs")
    return variant


def read_value(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        InputError: no such file, or it is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:  # also a text that is not UTF-8
        raise InputError(f"{path}: not valid JSON ({error})") from None


def read_objects(path: Path, field: str | None = None) -> list[dict[str, Any]]:
    """The list of objects in a JSON file, or in one field of the object that it holds.

    Raises:
        InputError: no such file, or something else in it.
    """
    value = read_value(path)
    if field is not None:
        value = value.get(field) if isinstance(value, dict) else None
    if not isinstance(value, list) or not value or not all(isinstance(record, dict) for record in value):
        place = f"'{field}' must be" if field else "must hold"
        raise InputError(f"{path}: {place} a list of objects, at least one")
    return value


def text_of(record: Mapping[str, Any], field: str, where: str) -> str:
    """The text in a field; InputError if it is missing, not a text or blank."""
    value = record.get(field)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where}: '{field}' is missing or not a text")
    return value


def prompt_of(record: Mapping[str, Any], field: str, where: str) -> str:
    """A text that becomes part of a prompt; InputError also if it holds the image placeholder."""
    value = text_of(record, field, where)
    if "<image>" in value:
        raise InputError(f"{where}: '{field}' contains <image>; the image is placed before the question")
    return value


def number_of(record: Mapping[str, Any], field: str, where: str) -> int:
    """The whole number in a field; InputError if it is missing or something else."""
    value = record.get(field)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{where}: '{field}' is missing or not a whole number")
    return value


def unique(ids: Sequence[str], path: Path) -> None:
    """Raises InputError if an id stands twice, naming and counting those that do."""
    seen: set[str] = set()
    double = [identity for identity in ids if identity in seen or seen.add(identity)]  # type: ignore[func-returns-value]
    if double:
        raise InputError(f"{path}: {len(double)} double question id(s), such as {double[0]}")


def refuse_missing(missing: Sequence[str], count: int) -> None:
    """Raises InputError if anything is missing: what the first is, and of how many of ``count`` questions."""
    if missing:
        raise InputError(f"{missing[0]} (so for {len(missing)} of {count} questions)")
