"""RealWorldQA (xAI 2024): 765 questions about photos taken from cars and on streets.

``RealWorldQA.tsv`` of VLMEvalKit, where all have options; or the release's Parquet, where some are answered in a word.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from llava_s2.eval.benchmark import Grade, HubFiles, Sample
from llava_s2.eval.choice import ChoiceBenchmark, split_options
from llava_s2.eval.llava_prompts import SHORT_ANSWER
from llava_s2.eval.schema import Record


class RealWorldQA(ChoiceBenchmark):
    """RealWorldQA by letter, or by the word where a question has no options."""

    name: ClassVar[str] = "realworldqa"
    title: ClassVar[str] = "RealWorldQA"
    hub: ClassVar[Mapping[str, HubFiles]] = {"": HubFiles("xai-org/RealworldQA", ("data/*",))}
    files: ClassVar[Mapping[str, tuple[str, ...]]] = {"": ("RealWorldQA.tsv", "test-*.parquet")}

    def sample(self, record: Record, data: Path, number: int) -> Sample:
        """The release asks for the kind of answer at the end of a question; LLaVA-1.5's request takes its place."""
        identity = record.identity("index") if "index" in record else str(number)
        record = Record({**record, "index": identity}, record.where)
        if "A" in record or len(split_options(record.prompt("question"))[1]) > 1:
            return super().sample(record, data, number)
        lines = [line for line in record.prompt("question").splitlines() if "Please answer" not in line]
        return Sample(
            id=identity,
            category="in a word",
            images=record.images("image"),
            prompt="\n".join((*lines, SHORT_ANSWER)).strip(),
            options=(),
            reference=record.text("answer").strip(),
        )

    def grade(self, sample: Sample, prediction: Mapping[str, Any]) -> Grade | None:
        """A word is right but for case and the full stop."""
        if sample.options:
            return super().grade(sample, prediction)
        return Grade(prediction["text"].strip().rstrip(".").lower() == sample.reference.rstrip(".").lower())
