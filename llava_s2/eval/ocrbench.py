"""OCRBench (Liu et al. 2023): 1,000 questions about text in images; the score is the number that are right.

The release's Parquet (``echo840/OCRBench``), its ``OCRBench.json`` with images, or VLMEvalKit's ``OCRBench.tsv``.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from llava_s2.eval.benchmark import Grade, HubFiles, Sample, Scoring
from llava_s2.eval.choice import TableBenchmark
from llava_s2.eval.llava_prompts import NEW_TOKENS
from llava_s2.eval.schema import Record, as_list

_FORMULAS = "Handwritten Mathematical Expression Recognition"


class OCRBench(TableBenchmark):
    """OCRBench by its own questions."""

    name: ClassVar[str] = "ocrbench"
    hub: ClassVar[Mapping[str, HubFiles]] = {"": HubFiles("echo840/OCRBench", ("data/*",))}
    protocols: ClassVar[Mapping[Scoring, str]] = {
        "generate": "OCRBench: greedy decoding of the bare question, right if the answer holds a reference"
    }
    categories: ClassVar[Mapping[str, str]] = {}
    max_new_tokens: ClassVar[int] = NEW_TOKENS
    files: ClassVar[Mapping[str, tuple[str, ...]]] = {"": ("OCRBench.tsv", "test-*.parquet", "OCRBench.json")}

    def sample(self, record: Record, data: Path, number: int) -> Sample:
        """A question's category is its type."""
        answer = record.first("answer", "answers")
        return Sample(
            id=record.identity("index", "id") if "index" in record or "id" in record else str(number),
            category=record.text("question_type", "category", "type"),
            images=record.images("image") or (data / record.text("image_path"),),
            prompt=record.prompt("question").strip(),
            options=(),
            reference=[str(text) for text in as_list(answer) or [answer]],
        )

    def grade(self, sample: Sample, prediction: Mapping[str, Any]) -> Grade:
        """Right if any reference occurs, but for case; of formulas, but for spaces."""
        held = (
            _plain(sample.category, text) in _plain(sample.category, prediction["text"]) for text in sample.reference
        )
        return Grade(any(held))

    def metrics(self, graded: Sequence[tuple[Sample, Grade, Mapping[str, Any]]]) -> dict[str, float]:
        """The published figure, up to 1,000."""
        return {"score": float(sum(bool(grade.correct) for _, grade, _ in graded))}


def _plain(category: str, text: str) -> str:
    text = text.strip().replace("\n", " ")
    return text.replace(" ", "") if category == _FORMULAS else text.lower()
