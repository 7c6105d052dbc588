"""BLINK (Fu et al. 2024): 14 tasks of perception, many with several images; its validation split.

``BLINK.tsv`` of VLMEvalKit, or the release's Parquet (``BLINK-Benchmark/BLINK``), a folder a task.
"""

from collections.abc import Mapping
from typing import ClassVar

from llava_s2.eval.benchmark import HubFiles
from llava_s2.eval.choice import ChoiceBenchmark
from llava_s2.eval.schema import Record


class BLINK(ChoiceBenchmark):
    """BLINK by letter."""

    name: ClassVar[str] = "blink"
    title: ClassVar[str] = "BLINK"
    hub: ClassVar[Mapping[str, HubFiles]] = {"": HubFiles("BLINK-Benchmark/BLINK", ("*/val-*",))}
    files: ClassVar[Mapping[str, tuple[str, ...]]] = {"": ("BLINK.tsv", "*/val-*.parquet", "val-*.parquet")}
    images: ClassVar[tuple[str, ...]] = ("image", "image_1", "image_2", "image_3", "image_4")
    identities: ClassVar[tuple[str, ...]] = ("index", "idx")

    def category(self, record: Record) -> tuple[str, tuple[str, ...]]:
        """The task."""
        return record.text("category", "sub_task").replace("_", " "), ()
