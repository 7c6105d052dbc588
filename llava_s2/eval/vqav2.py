"""VQAv2 (Goyal et al. 2017): open questions about COCO photos, with ten people's answers.

Layout of the official release (visualqa.org) with COCO's images beside it::

    v2_OpenEnded_mscoco_val2014_questions.json     {"questions": [{"question_id", "image_id", "question"}, …]}
    v2_mscoco_val2014_annotations.json             {"annotations": [{"question_id", "answer_type", "answers"}, …]}
    val2014/COCO_val2014_000000000042.jpg
    v2_OpenEnded_mscoco_test-dev2015_questions.json, v2_OpenEnded_mscoco_test2015_questions.json
    test2015/COCO_test2015_000000000001.jpg

or lmms-lab's Parquet (``validation-*.parquet``, ``testdev-*.parquet``, ``test-*.parquet``), each row with its answers.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from llava_s2.errors import InputError
from llava_s2.eval.benchmark import Benchmark, Grade, HubFiles, Sample, Scoring
from llava_s2.eval.llava_prompts import NEW_TOKENS, SHORT_ANSWER
from llava_s2.eval.run_folder import write_json
from llava_s2.eval.schema import Record, unique
from llava_s2.eval.tables import find_file, read_records
from llava_s2.eval.vqa_accuracy import normalize_m4c, vqa_accuracy

_QUESTIONS = {
    "val": "v2_OpenEnded_mscoco_val2014_questions.json",
    "test-dev": "v2_OpenEnded_mscoco_test-dev2015_questions.json",
    "test": "v2_OpenEnded_mscoco_test2015_questions.json",
}
_TABLES = {"val": "validation-*.parquet", "test-dev": "testdev-*.parquet", "test": "test-*.parquet"}
_ANNOTATIONS = "v2_mscoco_val2014_annotations.json"


class VQAv2(Benchmark):
    """VQAv2, with LLaVA-1.5's prompt and its way from a model's words to a submitted answer."""

    name: ClassVar[str] = "vqav2"
    hub: ClassVar[Mapping[str, HubFiles]] = {
        split: HubFiles("lmms-lab/VQAv2", (f"data/{name}",)) for split, name in _TABLES.items()
    }
    protocols: ClassVar[Mapping[Scoring, str]] = {
        "generate": "VQAv2: greedy decoding of LLaVA-1.5's short-answer prompt, M4C's answer processor, VQA accuracy"
    }
    categories: ClassVar[Mapping[str, str]] = {"yes/no": "yes/no", "number": "number", "other": "other"}
    max_new_tokens: ClassVar[int] = NEW_TOKENS
    variants: ClassVar[Mapping[str, str]] = {
        "val": "val2014, scored here",
        "test-dev": "test-dev2015, for the server",
        "test": "test2015, for the server",
    }

    def load(self, data: Path, scoring: Scoring | None) -> list[Sample]:
        """Reads the questions and, of ``val``, the annotations; neither may stand without the other."""
        names = {v: (_QUESTIONS[v], _TABLES[v]) for v in self.variants if self.variant in (None, v)}
        paths = find_file(data, [name for pair in names.values() for name in pair])
        self.variant = next(v for v, pair in names.items() if any(paths[0].match(name) for name in pair))
        records = [record for path in paths for record in read_records(path, "questions", ("image",))]
        unique([record.identity("question_id") for record in records], paths[0])
        annotated: Mapping[str, Mapping[str, Any]] = {}
        if self.variant == "val":
            questions = {str(r.number("question_id")): r for r in records}
            released = paths[0].suffix == ".json"
            annotated = _read_annotations(data / _ANNOTATIONS if released else None, questions)
        split = "val2014" if self.variant == "val" else "test2015"
        return [
            Sample(
                id=(identity := str(record.number("question_id"))),
                category=annotated[identity]["answer_type"] if annotated else "unscored",
                images=record.images("image") or (data / split / f"COCO_{split}_{record.number('image_id'):012d}.jpg",),
                prompt=f"{record.prompt('question')}\n{SHORT_ANSWER}",
                options=(),
                reference=annotated[identity]["answers"] if annotated else None,
            )
            for record in records
        ]

    def answer(self, text: str) -> str:
        """As LLaVA submits it. Without this, "Yes" would be wrong where ten people wrote "yes"."""
        return normalize_m4c(text)

    def grade(self, sample: Sample, prediction: Mapping[str, Any]) -> Grade | None:
        """VQA accuracy of the text as it stands."""
        return Grade(vqa_accuracy(prediction["text"], sample.reference)) if sample.reference else None

    def write_submission(
        self, samples: Sequence[Sample], predictions: Mapping[str, Mapping[str, Any]], folder: Path
    ) -> Path | None:
        """Of the test splits, ``[{"question_id", "answer"}, …]`` as the EvalAI server takes it."""
        if self.variant == "val":
            return None
        path = folder / f"vqav2_{self.variant}.json"
        write_json(path, [{"question_id": int(s.id), "answer": predictions[s.id]["text"]} for s in samples])
        return path


def _read_annotations(path: Path | None, questions: Mapping[str, Record]) -> dict[str, dict[str, Any]]:
    """Of each question its annotation, in a file of their own or, without ``path``, in the questions' records."""
    records = list(questions.values()) if path is None else read_records(path, "annotations")
    for record in records:
        record.text("answer_type")
        check_answers(record)
    unique([record.identity("question_id") for record in records], path or "")
    annotations: dict[str, dict[str, Any]] = {str(record["question_id"]): record for record in records}
    for alone, what in (
        (annotations.keys() - questions.keys(), "annotation(s) without a question"),
        (questions.keys() - annotations.keys(), "question(s) without an annotation"),
    ):
        if alone:
            raise InputError(f"{path}: {len(alone)} {what}, such as {min(alone)}; are the files of one split?")
    return annotations


def check_answers(record: Record) -> list[dict[str, Any]]:
    """The record's ``answers``, a list of objects that each have a text ``answer``; InputError if it is not."""
    answers = record.get("answers")
    if (
        not isinstance(answers, list)
        or not answers
        or not all(isinstance(person, dict) and isinstance(person.get("answer"), str) for person in answers)
    ):
        raise record.fault("'answers' must be a list of objects with a text 'answer'")
    return answers
