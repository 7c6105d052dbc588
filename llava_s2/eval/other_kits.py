"""Logs that lmms-eval and VLMEvalKit write of single questions, as grades that can be paired with a run made here.

lmms-eval's ``…_samples_TASK.jsonl`` has a line a question, in any order: ``doc_id`` (its place in the data), ``input``
(the prompt) and the metrics, as a number or an object with a ``score`` and perhaps the question's id; older ones have
``doc``, the record. VLMEvalKit's ``MODEL_DATASET_….xlsx`` (or ``.tsv``, ``.json``) has a row a question: ``index``,
``question``, ``prediction``, and ``hit``, ``score`` or ``eval_match`` where it was evaluated.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from llava_s2.errors import InputError
from llava_s2.eval.mmmu import comparable
from llava_s2.eval.schema import Record, as_list
from llava_s2.eval.tables import read_records

_IDS = ("question_id", "questionId", "question_idx", "index", "id", "pid", "idx", "Question_id", "Index")
_PLUMBING = {"doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "doc_hash", "input", "prompt_hash"}


class OtherAnswer(NamedTuple):
    """One question of a log.

    Attributes:
        ids: field of the log -> what may be the question's id here.
        place: its number in the data, from 0.
        question: what was asked, with or without options and requests; empty if the log does not say.
        grade: as the kit gave it; None if the log holds none.
    """

    ids: Mapping[str, str]
    place: int
    question: str
    grade: float | bool | None


def read_log(path: Path, task: str) -> tuple[str, list[OtherAnswer]]:
    """The kit's name and the answers of its log.

    Args:
        path: the log.
        task: ours of the same questions; VLMEvalKit's matches of some are distances.

    Raises:
        InputError: the file is neither kit's log.
    """
    records = read_records(path)
    if "doc_id" in records[0]:
        return "lmms-eval", [_lmms_eval(record) for record in records]
    if "index" in records[0] and "prediction" in records[0]:
        return "VLMEvalKit", [_vlmevalkit(record, place, task) for place, record in enumerate(records)]
    raise InputError(f"{path}: is no log of lmms-eval (doc_id, filtered_resps) or VLMEvalKit (index, prediction)")


def _lmms_eval(record: Record) -> OtherAnswer:
    metrics = {key: value for key, value in record.items() if key not in _PLUMBING and not isinstance(value, str)}
    grade = next((score for value in metrics.values() if (score := _number(value)) is not None), None)
    named = {"doc": record.get("doc"), **metrics}
    ids = {
        f"{key} {name}": str(value[name])
        for key, value in named.items()
        if isinstance(value, Mapping)
        for name in _IDS
        if isinstance(value.get(name), str | int)
    }
    doc = named["doc"] if isinstance(named["doc"], Mapping) else {}
    return OtherAnswer(ids, record.number("doc_id"), str(record.get("input") or doc.get("question") or ""), grade)


def _vlmevalkit(record: Record, place: int, task: str) -> OtherAnswer:
    ids = {name: str(record[name]) for name in ("index", "id") if isinstance(record.get(name), str | int)}
    return OtherAnswer(ids, place, str(record.get("question") or ""), _hit(record, task))


def _hit(record: Record, task: str) -> float | bool | None:
    """As VLMEvalKit's own totals take a row: of several references' matches the mean, of some tasks the best."""
    matches = as_list(record.get("eval_match"))
    if not matches:
        return next((_number(record[name]) for name in ("hit", "score", "match", "correct") if name in record), None)
    if not all(isinstance(match, int | float) for match in matches):
        raise record.fault("'eval_match' must be a list of numbers")
    if task in ("docvqa", "infovqa"):  # edit distances over lengths
        best = 1.0 - min(matches)
        return best if best >= 0.5 else 0.0
    return _number(max(matches) if task == "chartqa" else sum(matches) / len(matches))


def _number(value: Any) -> float | bool | None:
    """A grade: 0 and 1 as wrong and right, a number between as it is; of an object, what it calls its score."""
    if isinstance(value, Mapping):
        if "parsed_pred" in value:
            return _mmmu(value)
        known = [value[key] for key in ("score", "is_correct", "gpt_score", "true_false") if key in value]
        said = [value[key] for key in ("pred", "pred_answer") if key in value and "answer" in value]
        if said and not known:
            return str(said[0]).strip().lower() == str(value["answer"]).strip().lower()
        value = known[0] if known else None
    if isinstance(value, str):
        value = {"true": 1, "false": 0}.get(value.strip().lower(), value)
        try:
            value = float(value)
        except ValueError:
            return None
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        return None
    return bool(value) if value in (0, 1) else float(value)


def _mmmu(told: Mapping[str, Any]) -> bool:
    """As lmms-eval compares MMMU's and MMMU-Pro's parsed answers when it sums them up; of several attempts any."""
    references, parsed = (v if isinstance(v, list) else [v] for v in (told.get("answer"), told["parsed_pred"]))
    if told.get("question_type") != "open":
        return any(letter in references for letter in parsed)
    expected = [value for reference in references for value in comparable(str(reference))]
    return any(
        any(isinstance(value, str) and value in found for value in expected)
        if isinstance(found, str)
        else found in expected
        for found in parsed
    )
