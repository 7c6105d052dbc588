"""Predictions on disk: JSON lines that survive being cut off, and the run they belong to."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llava_s2.errors import InputError
from llava_s2.eval.records import read_value

PREDICTIONS = "predictions.jsonl"
RUN = "run.json"
REPORT = "report.json"


def read_predictions(path: Path) -> list[dict[str, Any]]:
    """The file's records in order, each with a ``question_id`` (as text) and a ``text``, some with a list ``options``.

    Raises:
        InputError: no such file, or a line that is no such record.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); it should hold predictions as JSON lines"
        ) from None
    records = []
    for number, line in enumerate(raw.splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise InputError(f"{where}: not valid JSON ({error})") from None
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            raise InputError(f"{where}: must be an object with 'question_id' and a text 'text'")
        identity = record.get("question_id")
        if isinstance(identity, bool) or not isinstance(identity, int | str):
            raise InputError(f"{where}: 'question_id' must be a text or a whole number")
        options = record.get("options")
        if options is not None and not (isinstance(options, list) and all(isinstance(o, str) for o in options)):
            raise InputError(f"{where}: 'options' must be a list of texts, those that the letters stand for")
        records.append({**record, "question_id": str(identity)})
    return records


class RunFolder:
    """The output folder of one run: ``run.json`` says of what, ``predictions.jsonl`` grows by whole lines.

    Args:
        path: the folder; made if missing.
        run: what the predictions depend on, JSON values. A folder that holds another run's is refused.

    Raises:
        InputError: the folder holds predictions of something else.
    """

    def __init__(self, path: Path, run: Mapping[str, Any]) -> None:
        self.path = path
        self._predictions = path / PREDICTIONS
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{path}: cannot be made a folder ({error.strerror}); choose another --output") from None
        if not self._predictions.exists():
            write_json(path / RUN, run)
            return
        if not (path / RUN).exists():
            raise InputError(f"{path}: holds {PREDICTIONS} without {RUN}; choose another --output")
        before = read_json(path / RUN)
        changed = [key for key in run if before.get(key) != run[key]]
        if changed:
            changes = ", ".join(f"{key} was {before.get(key)!r}, is {run[key]!r}" for key in changed)
            raise InputError(f"{path}: holds another run's predictions ({changes}); choose another --output")

    def resume(self) -> dict[str, dict[str, Any]]:
        """The predictions so far by ``question_id``; a last line that was cut off is removed from the file."""
        if not self._predictions.exists():
            return {}
        raw = self._predictions.read_bytes()
        whole = raw.rfind(b"\n") + 1
        if whole < len(raw):
            os.truncate(self._predictions, whole)
        records = read_predictions(self._predictions)
        if any(not isinstance(record.get("seconds"), float) for record in records):
            raise InputError(f"{self._predictions}: was not written by llava-s2 eval; choose another --output")
        return {record["question_id"]: record for record in records}

    def append(self, records: list[dict[str, Any]]) -> None:
        """Adds whole lines and hands them to the operating system, so that a killed run keeps them."""
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        with self._predictions.open("ab") as file:
            file.write(lines.encode())


def write_json(path: Path, value: Any) -> None:
    """Writes the file whole or not at all."""
    _write(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes JSON lines, the file whole or not at all."""
    _write(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in the file.

    Raises:
        InputError: no such file, or something else in it.
    """
    value = read_value(path)
    if not isinstance(value, dict):
        raise InputError(f"{path}: must be a JSON object")
    return value
