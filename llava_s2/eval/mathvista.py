"""MathVista (Lu et al. 2024): mathematical reasoning about images.

Layout of the official release (``AI4Math/MathVista`` on the hub)::

    testmini-00000-of-00001-….parquet      in the folder or in its data/

with columns ``pid``, ``query`` (the official prompt), ``choices``, ``precision``, ``answer``, ``question_type``,
``answer_type``, ``metadata`` (task, skills, …) and ``decoded_image``; or VLMEvalKit's ``MathVista_MINI.tsv``. Answers
are extracted and graded by the rules of the official code. Where its rules find nothing it asks a language model, as a
judge does here; without one the answer is taken as it is.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from llava_s2.eval.benchmark import Benchmark, Grade, HubFiles, Sample, Scoring
from llava_s2.eval.run_folder import write_json
from llava_s2.eval.schema import LETTERS, Record, refuse_missing, unique
from llava_s2.eval.tables import find_file, read_records

_COLUMNS = ("pid", "query", "choices", "precision", "answer", "question_type", "answer_type", "metadata")
_CHOICE = "multi_choice"
_EXAMPLES = (Path(__file__).with_name("prompts") / "mathvista.txt").read_text(encoding="utf-8").strip()
_TRIES = 3  # of a judge that says nothing


class MathVista(Benchmark):
    """MathVista's testmini, by the official prompt and rules."""

    name: ClassVar[str] = "mathvista"
    hub: ClassVar[Mapping[str, HubFiles]] = {"": HubFiles("AI4Math/MathVista", ("data/testmini*",))}
    protocols: ClassVar[Mapping[Scoring, str]] = {
        "generate": "MathVista: greedy decoding of the official query, answers extracted by the official rules"
    }
    categories: ClassVar[Mapping[str, str]] = {
        name: name
        for name in (
            "figure question answering",
            "geometry problem solving",
            "math word problem",
            "textbook question answering",
            "visual question answering",
            "algebraic reasoning",
            "arithmetic reasoning",
            "geometry reasoning",
            "logical reasoning",
            "numeric commonsense",
            "scientific reasoning",
            "statistical reasoning",
        )
    }
    max_new_tokens: ClassVar[int] = 1024
    judge_runs: ClassVar[int] = 1
    without_judge: ClassVar[str] = (
        "no judge: answers are extracted by rules alone, so a wordy answer to an open question counts as wrong; the "
        "official code has a language model read those, as --judge-url and --judge-model do"
    )

    def load(self, data: Path, scoring: Scoring | None) -> list[Sample]:
        """Reads testmini; a question's category is its task, and it counts in each of its skills too."""
        paths = find_file(data, ("testmini-*.parquet", "MathVista_MINI.tsv"))
        records = [record for path in paths for record in read_records(path, images=("decoded_image", "image"))]
        records = [_from_kit(record) if "pid" not in record else record for record in records]
        if scoring is not None:
            lacking = [f"{r.where}: no decoded_image" for r in records if not r.images("decoded_image")]
            refuse_missing(lacking, len(records))
        samples = [_sample(record) for record in records]
        unique([sample.id for sample in samples], data)
        return samples

    def grade(self, sample: Sample, prediction: Mapping[str, Any]) -> Grade:
        """Right if the normalised answer is, as a text, the reference; a judge's extraction goes before the rules'."""
        extracted = prediction.get("extracted")
        if not isinstance(extracted, str):
            extracted = extract(prediction["text"], sample.reference)
        normalized = normalize(extracted, sample.reference)
        return Grade(normalized == sample.reference["answer"], parseable=bool(extracted) and normalized is not None)

    def judge(
        self, ask: Callable[..., str], sample: Sample, prediction: Mapping[str, Any], runs: int
    ) -> dict[str, Any]:
        """The answer, ``extracted`` by the official prompt unless it stands there alone already."""
        text = prediction["text"]
        found = text if text == "" else _bare(text, sample.reference)
        if found is not None:
            return {"extracted": found}
        prompt = f"{_EXAMPLES}\n\n{sample.prompt}\n\n{text}\n\nExtracted answer: "
        replies = (ask(prompt, temperature=0.0, max_tokens=256, run=run).strip() for run in range(_TRIES))
        return {"extracted": next(filter(None, replies), "")}

    def write_submission(
        self, samples: Sequence[Sample], predictions: Mapping[str, Mapping[str, Any]], folder: Path
    ) -> Path | None:
        """``{pid: problem with "response"}``, of which the official code extracts and scores the answers."""
        path = folder / "mathvista.json"
        write_json(path, {s.id: {**s.reference["problem"], "response": predictions[s.id]["text"]} for s in samples})
        return path


def extract(text: str, question: Mapping[str, Any]) -> str:
    """The answer in a model's words, by the official code's rules; the words themselves where these find nothing.

    Args:
        text: the model's words.
        question: ``choices`` (empty in free form) and ``answer_type``.
    """
    bare = _bare(text, question)
    if bare is not None:
        return bare
    quoted = re.search(r'The answer is "(.*)"\.', text)
    return quoted[1] if quoted else text


def _bare(text: str, question: Mapping[str, Any]) -> str | None:
    """The text if it is nothing but an answer of the question's kind, else None."""
    if text in question["choices"]:
        return text
    for kind, number in (("integer", int), ("float", float)):
        if question["answer_type"] == kind:
            try:
                return str(number(text))
            except ValueError:
                pass
    return None


def normalize(extracted: str, question: Mapping[str, Any]) -> str | None:
    """An extracted answer in the form of the references, or None if it is not of the question's type.

    Of choices, the one with the letter in brackets or with the letter that the answer is, else the most similar one by
    edit distance.

    Args:
        extracted: an answer.
        question: ``choices`` (empty in free form), ``answer_type`` and ``precision`` (digits of a float).
    """
    choices = question["choices"]
    if choices:
        extracted = extracted.strip()
        bracketed = re.search(r"\(([a-zA-Z])\)", extracted)
        letter = bracketed[1].upper() if bracketed else extracted
        if len(letter) == 1 and letter in LETTERS[: len(choices)]:
            return choices[LETTERS.index(letter)]
        return min(choices, key=lambda choice: edit_distance(letter, choice))
    try:
        if question["answer_type"] == "integer":
            return str(int(float(extracted)))
        if question["answer_type"] == "float":
            return str(round(float(extracted), int(question["precision"])))
    except (ValueError, OverflowError):
        return None
    return extracted


def edit_distance(a: str, b: str) -> int:
    """Insertions, deletions and replacements of characters that turn one text into the other (Levenshtein 1966)."""
    row = list(range(len(b) + 1))
    for i, first in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, second in enumerate(b, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (first != second))
    return row[-1]


def _from_kit(record: Record) -> Record:
    """A row of VLMEvalKit's table as one of the release; a float has the digits of its answer."""
    choices = record.texts("choices") if record.optional("question_type") == _CHOICE else []
    fields = {
        "pid": record.identity("index"),
        "query": record.text("question"),
        "choices": choices,
        "precision": len(record.text("answer").partition(".")[2]),
        "metadata": {"task": record.text("task"), "skills": record.texts("skills")},
        "decoded_image": record.first("image"),
    }
    return Record({**record, **fields}, record.where)


def _sample(record: Record) -> Sample:
    kind, answer_type = record.text("question_type"), record.text("answer_type")
    choices = record.texts("choices") if record.first("choices") else []
    if (kind == _CHOICE) != bool(choices) or len(choices) > len(LETTERS):
        raise record.fault(f"question_type {kind!r} with {len(choices)} choices")
    answer = record.text("answer")
    if choices and answer not in choices:
        raise record.fault(f"the answer {answer!r} is none of the choices")
    if answer_type == "float" and not isinstance(record.first("precision"), int | float):
        raise record.fault("'precision' of a float is missing")
    metadata = record.get("metadata")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("skills"), Sequence):
        raise record.fault("'metadata' must hold a task and a list of skills")
    if metadata.get("split", "testmini") != "testmini":
        raise record.fault(f"is of the split {metadata['split']}; only testmini has answers")
    return Sample(
        id=record.identity("pid"),
        category=Record(metadata, record.where).text("task"),
        images=record.images("decoded_image"),
        prompt=record.prompt("query"),
        options=tuple(choices),
        reference={
            "choices": choices,
            "answer_type": answer_type,
            "precision": record.get("precision"),
            "answer": answer,
            "problem": {column: record.get(column) for column in _COLUMNS},
        },
        also=tuple(metadata["skills"]),
    )
