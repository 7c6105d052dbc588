"""ChartQA (Masry et al. 2022): questions about charts, by people and by a program; relaxed accuracy.

``test/test_human.json`` and ``test/test_augmented.json`` of the release (``{"imgname", "query", "label"}``) with
``test/png/``; ``ChartQA_TEST.tsv`` of VLMEvalKit; or lmms-lab's Parquet (``lmms-lab/ChartQA``).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from llava_s2.eval.benchmark import Grade, HubFiles, Sample, Scoring
from llava_s2.eval.choice import TableBenchmark
from llava_s2.eval.llava_prompts import NEW_TOKENS, SHORT_ANSWER
from llava_s2.eval.schema import Record, as_list

_TOLERANCE = 0.05


class ChartQA(TableBenchmark):
    """ChartQA with LLaVA-1.5's prompt."""

    name: ClassVar[str] = "chartqa"
    hub: ClassVar[Mapping[str, HubFiles]] = {"": HubFiles("lmms-lab/ChartQA", ("data/*",))}
    protocols: ClassVar[Mapping[Scoring, str]] = {
        "generate": "ChartQA: greedy decoding of LLaVA-1.5's short-answer prompt, relaxed accuracy (numbers within 5 %)"
    }
    categories: ClassVar[Mapping[str, str]] = {"human": "asked by people", "augmented": "by a program"}
    max_new_tokens: ClassVar[int] = NEW_TOKENS
    files: ClassVar[Mapping[str, tuple[str, ...]]] = {"": ("ChartQA_TEST.tsv", "test-*.parquet")}

    def _find(self, data: Path) -> list[Path]:
        released = [data / "test" / f"test_{kind}.json" for kind in self.categories]
        return released if all(path.is_file() for path in released) else super()._find(data)

    def sample(self, record: Record, data: Path, number: int) -> Sample:
        """The split's name says who asked."""
        answer = record.first("answer", "label")
        kind = record.optional("split", "type", "human_or_machine") or Path(record.where.rpartition(",")[0]).stem
        return Sample(
            id=record.identity("index") if "index" in record else str(number),
            category="augmented" if "augmented" in kind else "human",
            images=record.images("image") or (data / "test" / "png" / record.text("imgname"),),
            prompt=f"{record.prompt('question', 'query')}\n{SHORT_ANSWER}",
            options=(),
            reference=[str(text) for text in as_list(answer) or [answer]]
            if str(answer).startswith("[")
            else [str(answer)],
        )

    def grade(self, sample: Sample, prediction: Mapping[str, Any]) -> Grade:
        """Right if any reference is met."""
        return Grade(any(relaxed(prediction["text"].strip(), reference) for reference in sample.reference))


def relaxed(answer: str, reference: str) -> bool:
    """Whether a number is within 5 % of the reference, or a text equal but for case."""
    said, meant = _number(answer), _number(reference)
    if said is not None and meant:
        return abs(said - meant) / abs(meant) <= _TOLERANCE
    return answer.lower() == reference.lower()


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
