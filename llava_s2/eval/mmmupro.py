"""MMMU-Pro (Yue et al. 2024): MMMU with ten options, or with the whole question inside the image.

The release's Parquet (``MMMU/MMMU_Pro``: ``standard (10 options)/test-*``, ``standard (4 options)/…``, ``vision/…``),
or VLMEvalKit's ``MMMU_Pro_10c.tsv`` and ``MMMU_Pro_V.tsv``.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from llava_s2.eval.benchmark import Grade, HubFiles, Sample, Scoring
from llava_s2.eval.choice import TableBenchmark
from llava_s2.eval.llava_prompts import NEW_TOKENS
from llava_s2.eval.mmmu import parse_letter
from llava_s2.eval.schema import LETTERS, Record

_REQUEST = "Answer with the option letter from the given choices directly."


class MMMUPro(TableBenchmark):
    """MMMU-Pro by its direct prompt; images stand where the question names them."""

    name: ClassVar[str] = "mmmupro"
    hub: ClassVar[Mapping[str, HubFiles]] = {
        "standard-10": HubFiles("MMMU/MMMU_Pro", ("standard (10 options)/test-*",)),
        "standard-4": HubFiles("MMMU/MMMU_Pro", ("standard (4 options)/test-*",)),
        "vision": HubFiles("MMMU/MMMU_Pro", ("vision/test-*",)),
    }
    protocols: ClassVar[Mapping[Scoring, str]] = {
        "generate": "MMMU-Pro: greedy decoding of its direct prompt, images where the question has them, MMMU's parsing"
    }
    categories: ClassVar[Mapping[str, str]] = {}
    max_new_tokens: ClassVar[int] = NEW_TOKENS
    variants: ClassVar[Mapping[str, str]] = {
        "standard-10": "ten options",
        "standard-4": "four options",
        "vision": "question and options inside the image",
    }
    files: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "standard-10": ("standard (10 options)/test-*.parquet", "MMMU_Pro_10c.tsv"),
        "standard-4": ("standard (4 options)/test-*.parquet",),
        "vision": ("vision/test-*.parquet", "MMMU_Pro_V.tsv"),
    }
    images: ClassVar[tuple[str, ...]] = ("image", *(f"image_{number}" for number in range(1, 8)))

    def sample(self, record: Record, data: Path, number: int) -> Sample:
        """Of ``vision`` the prompt is the request alone."""
        options = record.options() if "A" in record else record.texts("options")
        shown = record.images(*self.images)
        prompt, interleaved = _REQUEST, False
        if self.variant != "vision":
            listed = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
            prompt = f"{record.prompt('question')}\n{listed}\n\n{_REQUEST}"
            named = [int(place) for place in re.findall(r"<image (\d)>", prompt)]
            if interleaved := bool(named) and max(named) <= len(shown):
                shown = tuple(shown[place - 1] for place in named)
                prompt = re.sub(r"<image \d>", "<image>", prompt)
        return Sample(
            id=record.identity("id", "index"),
            category=record.optional("subject", "category").replace("_", " ") or "all",
            images=shown,
            prompt=prompt,
            options=tuple(options),
            reference=record.letter("answer", len(options)),
            interleaved=interleaved,
        )

    def grade(self, sample: Sample, prediction: Mapping[str, Any]) -> Grade:
        """By MMMU's parsing; a letter that cannot be read is wrong."""
        letter = parse_letter(prediction["text"], sample.options)
        return Grade(letter == sample.reference, parseable=letter is not None)
