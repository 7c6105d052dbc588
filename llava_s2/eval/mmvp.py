"""MMVP (Tong et al. 2024): 150 pairs of images that CLIP takes for alike, one question each; right if both are.

``MMVP.tsv`` of VLMEvalKit; ``Questions.csv`` and ``MMVP Images/1.jpg`` of the release (``MMVP/MMVP``); or Parquet.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from llava_s2.eval.benchmark import Grade, HubFiles, Sample
from llava_s2.eval.choice import ChoiceBenchmark, split_options
from llava_s2.eval.schema import Record


class MMVP(ChoiceBenchmark):
    """MMVP by letter; neighbours are a pair."""

    name: ClassVar[str] = "mmvp"
    title: ClassVar[str] = "MMVP"
    hub: ClassVar[Mapping[str, HubFiles]] = {"": HubFiles("MMVP/MMVP", ("*",))}
    files: ClassVar[Mapping[str, tuple[str, ...]]] = {"": ("MMVP.tsv", "Questions.csv", "train-*.parquet")}
    identities: ClassVar[tuple[str, ...]] = ("index", "Index", "lndex")  # the last a slip of the release's CSV

    def question(self, record: Record) -> tuple[str, list[str]]:
        """The release has ``(a) Open (b) Closed`` in a column of its own."""
        if "A" in record:
            return super().question(record)
        return record.prompt("Question"), split_options(record.text("Options"))[1]

    def answer_letter(self, record: Record, options: list[str]) -> str:
        """A letter, in the release as ``(a)``."""
        return record.letter("answer" if "answer" in record else "Correct Answer", len(options))

    def group(self, record: Record, number: int) -> str:
        """Two and two."""
        return f"pair {number // 2 + 1}"

    def image_file(self, record: Record, data: Path) -> tuple[Path, ...]:
        """By number."""
        return (data / "MMVP Images" / f"{record.identity(*self.identities)}.jpg",)

    def metrics(self, graded: Sequence[tuple[Sample, Grade, Mapping[str, Any]]]) -> dict[str, float]:
        """Accuracy of single questions; the results are of pairs."""
        return {"accuracy of single questions": sum(bool(grade.correct) for _, grade, _ in graded) / len(graded)}
