"""Logs that lmms-eval and VLMEvalKit write of single questions, as answers that can be paired with a run made here.

lmms-eval's ``…_samples_TASK.jsonl`` has a line a question: ``doc_id``, ``doc`` (the record), ``resps`` or
``filtered_resps``, ``target`` and the metrics, as a number or an object with a ``score``. VLMEvalKit's
``MODEL_DATASET_….xlsx`` (or ``.tsv``, ``.json``) has a row a question: ``index``, ``prediction``, and ``hit`` or
``score`` where it was evaluated.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from llava_s2.errors import InputError
from llava_s2.eval.schema import Record
from llava_s2.eval.tables import read_records

_IDS = ("question_id", "questionId", "question_idx", "index", "id", "pid", "idx", "Question_id", "Index")
_PLUMBING = {"doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "doc_hash", "input", "prompt_hash"}
_HITS = ("hit", "score", "match", "eval_score", "correct")


class OtherAnswer(NamedTuple):
    """One question of a log.

    Attributes:
        ids: what may be its id here.
        place: its number in the log, from 0.
        text: the answer.
        grade: as the kit gave it; None if the log holds none.
    """

    ids: tuple[str, ...]
    place: int
    text: str
    grade: float | bool | None


def read_log(path: Path) -> tuple[str, list[OtherAnswer]]:
    """The kit's name and the answers of its log, in order.

    Raises:
        InputError: the file is neither kit's log.
    """
    records = _workbook(path) if path.suffix == ".xlsx" else read_records(path)
    if "doc_id" in records[0]:
        return "lmms-eval", [_lmms_eval(record, place) for place, record in enumerate(records)]
    if "index" in records[0] and "prediction" in records[0]:
        return "VLMEvalKit", [_vlmevalkit(record, place) for place, record in enumerate(records)]
    raise InputError(f"{path}: is no log of lmms-eval (doc_id, resps) or VLMEvalKit (index, prediction)")


def _lmms_eval(record: Record, place: int) -> OtherAnswer:
    doc = record.get("doc") if isinstance(record.get("doc"), dict) else {}
    assert isinstance(doc, dict)
    scores = [_number(value) for key, value in record.items() if key not in _PLUMBING]
    grade = next((score for score in scores if score is not None), None)
    text: Any = record.first("filtered_resps", "resps")
    while isinstance(text, list) and text:
        text = text[0]
    ids = tuple(str(doc[name]) for name in _IDS if isinstance(doc.get(name), str | int))
    # A record without an id goes by its place, as it does here.
    return OtherAnswer(ids or (str(record["doc_id"]),), place, str(text), grade)


def _vlmevalkit(record: Record, place: int) -> OtherAnswer:
    ids = tuple(str(record[name]) for name in ("index", "id") if isinstance(record.get(name), str | int))
    hit = next((_number(record[name]) for name in _HITS if name in record), None)
    return OtherAnswer(ids, place, str(record.get("prediction") or ""), hit)


def _number(value: Any) -> float | bool | None:
    """A grade: 0 and 1 as wrong and right, a number between as it is; of an object, that of its ``score``."""
    if isinstance(value, Mapping):
        value = next((value[key] for key in ("score", "is_correct", "gpt_score") if key in value), None)
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        return None
    return bool(value) if value in (0, 1) else float(value)


def _workbook(path: Path) -> list[Record]:
    try:
        from openpyxl import load_workbook
    except ImportError:
        raise InputError(f'{path}: reading it takes openpyxl: pip install "llava-s2[eval]"') from None
    try:
        rows = load_workbook(path, read_only=True).worksheets[0].iter_rows(values_only=True)
        names = [str(name) for name in next(rows)]
    except (OSError, ValueError, KeyError, StopIteration) as error:
        raise InputError(f"{path}: cannot be read as an Excel file ({error})") from None
    records = [dict(zip(names, row, strict=False)) for row in rows]
    return [Record(fields, f"{path}, row {number}") for number, fields in enumerate(records, start=2)]
