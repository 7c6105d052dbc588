"""Predictions on disk: JSON lines that survive being cut off, and the run they belong to."""

import json
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from llava_s2.errors import InputError
from llava_s2.eval.tables import read_records, read_value
from llava_s2.files import atomic_write

PREDICTIONS = "predictions.jsonl"
RUN = "run.json"
REPORT = "report.json"
LOADED = "loaded"
_OF_GRADING = ("rule", "protocol", "seed")
"""What a finished run may change without its answers becoming another run's."""
_BESIDE_AN_ANSWER = {
    *(
        "answer",
        "question_id",
        "questionId",
        "index",
        "image",
        "image_id",
        "prompt",
        "answer_id",
        "model_id",
        "metadata",
    )
}
"""The fields of records whose ``answer`` is the model's, as in the files that servers take."""


def read_predictions(path: Path) -> list[dict[str, Any]]:
    """The file's records in order, each with a ``question_id`` (as text) and a ``text``; JSON lines, or a list.

    Other names of the two that scoring programs write are read too: ``questionId``, ``index`` or ``image``,
    ``prediction`` or ``answer``; the latter only where it cannot be the reference.

    Raises:
        InputError: no such file, or a line that is no such record.
    """
    records = []
    for record in read_records(path):
        text = record.first("text", "prediction")
        if text is None and record.keys() - _BESIDE_AN_ANSWER and "answer" in record:
            raise record.fault(
                "has no 'text', and its 'answer' may be the reference, since it stands beside others than an id; "
                "name the model's reply 'text'"
            )
        text = record.get("answer") if text is None else text
        if not isinstance(text, str):
            raise record.fault("must be an object with 'question_id' and a text 'text'")
        identity = record.identity("question_id", "questionId", "index", "image")
        options = record.get("options")
        if options is not None and not (isinstance(options, list) and all(isinstance(o, str) for o in options)):
            raise record.fault("'options' must be a list of texts, those that the letters stand for")
        records.append({**record, "question_id": identity, "text": text})
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
        self._run = run
        self._predictions = path / PREDICTIONS
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{path}: cannot be made a folder ({error.strerror}); choose another --output") from None
        if not self._predictions.exists() and not any(path.glob(part_name("*"))):
            write_json(path / RUN, run)
            return
        if not (path / RUN).exists():
            raise InputError(f"{path}: holds {PREDICTIONS} without {RUN}; choose another --output")
        self._refuse_changes(run)

    def note(self, loaded: Mapping[str, Any]) -> None:
        """Adds to ``run.json`` what only the loaded model tells; another process's or an earlier start's must agree."""
        if LOADED in read_value(self.path / RUN):
            self._refuse_changes({LOADED: loaded})
        else:
            write_json(self.path / RUN, {**self._run, LOADED: loaded})

    def noted(self) -> dict[str, Any]:
        """What ``note`` was given."""
        return read_value(self.path / RUN).get(LOADED, {})

    def _refuse_changes(self, now: Mapping[str, Any]) -> None:
        before = read_value(self.path / RUN)
        if not isinstance(before, dict):
            raise InputError(f"{self.path / RUN}: must be an object; choose another --output")
        keys = [*now, *(key for key in before if key not in now and LOADED not in (key, *now))]
        changed = [key for key in keys if key not in _OF_GRADING and before.get(key) != now.get(key)]
        if changed:
            changes = ", ".join(f"{key} was {before.get(key)!r}, is {now.get(key)!r}" for key in changed)
            raise InputError(f"{self.path}: holds another run's predictions ({changes}); choose another --output")

    def resume(self) -> dict[str, dict[str, Any]]:
        """The predictions so far by ``question_id``, with those that other processes left in files of their own.

        Afterwards ``predictions.jsonl`` holds them all, and no half-written line.
        """
        if self._predictions.exists():
            cut_to_whole_lines(self._predictions)
        parts = sorted(self.path.glob(part_name("*")))
        for part in parts:
            cut_to_whole_lines(part)
        found: dict[str, dict[str, Any]] = {}
        for file in [self._predictions, *parts]:
            for record in read_predictions(file) if file.exists() and file.stat().st_size else ():
                if not isinstance(record.get("seconds"), float):
                    raise InputError(f"{file}: was not written by llava-s2 eval; choose another --output")
                found.setdefault(record["question_id"], record)
        if parts:
            self._rewrite(found.values())
            for part in parts:
                part.unlink()
        return found

    def forget(self, predictions: dict[str, dict[str, Any]], ids: Collection[str]) -> None:
        """Removes predictions that have to be made anew, from the file too."""
        for identity in ids:
            del predictions[identity]
        if ids:
            self._rewrite(predictions.values())

    def sort(self, predictions: Mapping[str, Mapping[str, Any]], order: Iterable[str]) -> None:
        """Puts the lines in the order of the ids; a question that stands there twice stays once."""
        ids = dict.fromkeys(identity for identity in order if identity in predictions)
        lines = [predictions[identity] for identity in (*ids, *(predictions.keys() - ids))]
        if self._predictions.read_bytes() != b"".join(map(_line, lines)):
            self._rewrite(lines)

    def _rewrite(self, records: Iterable[Mapping[str, Any]]) -> None:
        write_records(self._predictions, records)


def part_name(process: int | str) -> str:
    """The file in a run's folder that a process other than the first writes its predictions to."""
    return f"predictions.process-{process}.jsonl"


def append_predictions(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Adds whole lines and hands them to the operating system, so that a killed run keeps them."""
    with path.open("ab") as file:
        file.write(b"".join(map(_line, records)))


def _line(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(record, ensure_ascii=False) + "\n").encode()


def cut_to_whole_lines(path: Path) -> None:
    """Removes a last line that has no end, which a killed program left."""
    raw = path.read_bytes()
    whole = raw.rfind(b"\n") + 1
    if whole < len(raw):
        os.truncate(path, whole)


def write_json(path: Path, value: Any) -> None:
    """Writes the file whole or not at all."""
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes JSON lines, the file whole or not at all."""
    with atomic_write(path) as partial:
        partial.write_bytes(b"".join(map(_line, records)))
