"""DocVQA and InfographicVQA (Mathew et al. 2021, 2022): questions about pages and infographics, by ANLS.

Layout of the official releases (rrc.cvc.uab.es)::

    val_v1.0_withQT.json, infographicsVQA_val_v1.0_withQT.json    {"data": [{"questionId", "question", "answers"}, …]}
    documents/….png; infographicsvqa_images/….jpeg

or lmms-lab's Parquet (``DocVQA/validation-*``, ``InfographicVQA/validation-*``), or VLMEvalKit's ``DocVQA_VAL.tsv`` and
``InfoVQA_VAL.tsv``. The test splits have no answers and write the file for the server.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from llava_s2.eval.benchmark import Grade, HubFiles, Sample, Scoring
from llava_s2.eval.choice import TableBenchmark
from llava_s2.eval.llava_prompts import NEW_TOKENS, SHORT_ANSWER
from llava_s2.eval.mathvista import edit_distance
from llava_s2.eval.run_folder import write_json
from llava_s2.eval.schema import Record

_THRESHOLD = 0.5


class DocVQA(TableBenchmark):
    """DocVQA with LLaVA-1.5's prompt."""

    name: ClassVar[str] = "docvqa"
    hub: ClassVar[Mapping[str, HubFiles]] = {
        "val": HubFiles("lmms-lab/DocVQA", ("DocVQA/validation-*",)),
        "test": HubFiles("lmms-lab/DocVQA", ("DocVQA/test-*",)),
    }
    protocols: ClassVar[Mapping[Scoring, str]] = {
        "generate": "DocVQA: greedy decoding of LLaVA-1.5's short-answer prompt, ANLS (threshold 0.5)"
    }
    categories: ClassVar[Mapping[str, str]] = {}
    max_new_tokens: ClassVar[int] = NEW_TOKENS
    variants: ClassVar[Mapping[str, str]] = {"val": "scored here", "test": "for the server"}
    files: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "val": (
            "val_v1.0_withQT.json",
            "val_v1.0.json",
            "DocVQA_VAL.tsv",
            "DocVQA/validation-*.parquet",
            "validation-*",
        ),
        "test": ("test_v1.0.json", "DocVQA_TEST.tsv", "DocVQA/test-*.parquet", "test-*.parquet"),
    }
    field: ClassVar[str | None] = "data"
    image_folder: ClassVar[str] = ""
    """Folder of the release's images, where a record's name does not hold it."""

    def sample(self, record: Record, data: Path, number: int) -> Sample:
        """A question's category is the first of its types, where the release names them."""
        answers = record.texts("answers", "answer") if record.first("answers", "answer") is not None else None
        types = record.first("question_types")
        shown = record.images("image")
        return Sample(
            id=record.identity("questionId", "index"),
            category=str(types[0]) if isinstance(types, list) and types else "all",
            images=shown or (data / self.image_folder / record.text("image_local_name", "image", "image_path"),),
            prompt=f"{record.prompt('question')}\n{SHORT_ANSWER}",
            options=(),
            reference=answers or None,
        )

    def grade(self, sample: Sample, prediction: Mapping[str, Any]) -> Grade | None:
        """ANLS of the text."""
        return None if sample.reference is None else Grade(anls(prediction["text"], sample.reference))

    def write_submission(
        self, samples: Sequence[Sample], predictions: Mapping[str, Mapping[str, Any]], folder: Path
    ) -> Path | None:
        """Of the test split, ``[{"questionId", "answer"}, …]``."""
        if self.variant != "test":
            return None
        path = folder / f"{self.name}_test.json"
        write_json(path, [{"questionId": int(s.id), "answer": predictions[s.id]["text"]} for s in samples])
        return path


class InfoVQA(DocVQA):
    """InfographicVQA, likewise."""

    name: ClassVar[str] = "infovqa"
    hub: ClassVar[Mapping[str, HubFiles]] = {
        "val": HubFiles("lmms-lab/DocVQA", ("InfographicVQA/validation-*",)),
        "test": HubFiles("lmms-lab/DocVQA", ("InfographicVQA/test-*",)),
    }
    protocols: ClassVar[Mapping[Scoring, str]] = {
        "generate": "InfographicVQA: greedy decoding of LLaVA-1.5's short-answer prompt, ANLS (threshold 0.5)"
    }
    files: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "val": (
            *("infographicsVQA_val_v1.0_withQT.json", "infographicsVQA_val_v1.0.json", "InfoVQA_VAL.tsv"),
            *("InfographicVQA/validation-*.parquet", "validation-*.parquet"),
        ),
        "test": (
            "infographicsVQA_test_v1.0.json",
            "InfoVQA_TEST.tsv",
            "InfographicVQA/test-*.parquet",
            "test-*.parquet",
        ),
    }
    image_folder: ClassVar[str] = "infographicsvqa_images"


def anls(answer: str, references: Sequence[str]) -> float:
    """Average normalized Levenshtein similarity (Biten et al. 2019) of one answer: the best reference's, 0 below 0.5.

    As in the usual scoring programs, the distance is of the texts in lower case with single spaces, and the length that
    of the texts as they are.
    """
    best = 0.0
    for reference in references:
        a, b = (" ".join(text.lower().split()) for text in (answer, reference))
        length = max(len(answer), len(reference))
        best = max(best, 1 - edit_distance(a, b) / length if length else 1.0)
    return best if best >= _THRESHOLD else 0.0
