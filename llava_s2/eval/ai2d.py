"""AI2D (Kembhavi et al. 2016): questions about diagrams of school science; its test split.

``AI2D_TEST.tsv`` and ``AI2D_TEST_NO_MASK.tsv`` of VLMEvalKit, or lmms-lab's Parquet (``ai2d``, ``ai2d-no-mask``), whose
answer is the option's place.
"""

from collections.abc import Mapping
from typing import ClassVar

from llava_s2.eval.choice import ChoiceBenchmark
from llava_s2.eval.schema import LETTERS, Record


class AI2D(ChoiceBenchmark):
    """AI2D by letter."""

    name: ClassVar[str] = "ai2d"
    title: ClassVar[str] = "AI2D"
    hub: ClassVar[tuple[str, ...]] = ("lmms-lab/ai2d", "data/*")
    variants: ClassVar[Mapping[str, str]] = {
        "mask": "labels in the diagram replaced by letters, as usual",
        "no-mask": "labels in the diagram left as they are",
    }
    files: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "mask": ("AI2D_TEST.tsv", "test-*.parquet"),
        "no-mask": ("AI2D_TEST_NO_MASK.tsv", "no_mask/test-*.parquet"),
    }
    identities: ClassVar[tuple[str, ...]] = ()

    def answer_letter(self, record: Record, options: list[str]) -> str:
        """A letter in the one copy, a place from 0 in the other."""
        answer = record.first("answer")
        if str(answer).isdecimal() and record.number("answer") < len(options):
            return LETTERS[record.number("answer")]
        return record.letter("answer", len(options))
