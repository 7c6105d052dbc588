"""HR-Bench (Wang et al. 2024): 200 questions about photos of 4,000 or 8,000 pixels, in four orders of the options.

``hr_bench_4k.tsv`` and ``hr_bench_8k.tsv`` of the release (``DreamMr/HR-Bench``), or its Parquet. The score is the mean
over the four orders. Images reach the model as they are: it alone reduces them.
"""

from collections.abc import Mapping
from typing import ClassVar

from llava_s2.eval.benchmark import HubFiles
from llava_s2.eval.choice import ChoiceBenchmark
from llava_s2.eval.schema import Record


class HRBench(ChoiceBenchmark):
    """HR-Bench by letter."""

    name: ClassVar[str] = "hrbench"
    title: ClassVar[str] = "HR-Bench"
    hub: ClassVar[Mapping[str, HubFiles]] = {
        size: HubFiles("DreamMr/HR-Bench", (f"hr_bench_{size}.tsv|hr_bench_{size}.parquet|*hrbench_{size}-*",))
        for size in ("4k", "8k")
    }
    categories: ClassVar[Mapping[str, str]] = {"single": "single instance", "cross": "across instances"}
    variants: ClassVar[Mapping[str, str]] = {"4k": "photos cut to 4K", "8k": "photos of 8K"}
    files: ClassVar[Mapping[str, tuple[str, ...]]] = {
        size: (
            *(f"hr_bench_{size}.tsv", f"HRBench{size.upper()}.tsv", f"hr_bench_{size}.parquet"),
            *(f"hrbench_{size}-*.parquet", f"*/hrbench_{size}-*"),
        )
        for size in ("4k", "8k")
    }

    def category(self, record: Record) -> tuple[str, tuple[str, ...]]:
        """Single or cross."""
        return record.text("category"), ()
