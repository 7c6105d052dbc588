"""MMStar (Chen et al. 2024): 1,500 questions that cannot be answered without the image.

``MMStar.tsv`` of VLMEvalKit, or the release's Parquet (``Lin-Chen/MMStar``), whose options stand in the question's
text.
"""

from collections.abc import Mapping
from typing import ClassVar

from llava_s2.eval.benchmark import HubFiles
from llava_s2.eval.choice import ChoiceBenchmark
from llava_s2.eval.schema import Record


class MMStar(ChoiceBenchmark):
    """MMStar by letter."""

    name: ClassVar[str] = "mmstar"
    title: ClassVar[str] = "MMStar"
    hub: ClassVar[Mapping[str, HubFiles]] = {"": HubFiles("Lin-Chen/MMStar", ("*.parquet",))}
    files: ClassVar[Mapping[str, tuple[str, ...]]] = {"": ("MMStar.tsv", "val-*.parquet", "mmstar.parquet")}

    def category(self, record: Record) -> tuple[str, tuple[str, ...]]:
        """The core capability, and its axis."""
        axis = record.optional("l2_category", "l2-category")
        return record.text("category"), (axis,) if axis else ()
