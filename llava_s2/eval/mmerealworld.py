"""MME-RealWorld (Zhang et al. 2024): photos of 2,000 pixels and more, five options, the last of which gives up.

The release's ``MME_RealWorld.json`` with its images, VLMEvalKit's ``MME-RealWorld.tsv`` and ``mme_realworld_lite.tsv``,
or the Parquet of ``yifanzhang114/MME-RealWorld-lite-lmms-eval`` and ``…/MME-RealWorld-Lmms-eval``. Images reach the
model as they are.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from llava_s2.errors import InputError
from llava_s2.eval.benchmark import Grade, HubFiles, Sample, Scoring
from llava_s2.eval.choice import TableBenchmark
from llava_s2.eval.schema import LETTERS, Record

_MOST_LITE = 5_000  # questions; lite has 1,919, all 23,609
_REQUEST = (
    "Select the best answer to the above multiple-choice question based on the image. Respond with only the letter "
    "(A, B, C, D, or E) of the correct option.\nThe best answer is:"
)
_PREFIXES = (
    *("The best answer is", "The correct answer is", "The answer is", "The answer", "The best option is"),
    *("The correct option is", "Best answer:", "Best option:"),
)


class MMERealWorld(TableBenchmark):
    """MME-RealWorld by its own prompt and its own reading of letters."""

    name: ClassVar[str] = "mmerealworld"
    hub: ClassVar[Mapping[str, HubFiles]] = {
        "lite": HubFiles("yifanzhang114/MME-RealWorld-lite-lmms-eval", ("data/train-*",)),
        "all": HubFiles("yifanzhang114/MME-RealWorld-Lmms-eval", ("data/train-*",), folder="all"),
    }
    protocols: ClassVar[Mapping[Scoring, str]] = {
        "generate": "MME-RealWorld: greedy decoding of its own prompt, the first letter after its own prefixes"
    }
    categories: ClassVar[Mapping[str, str]] = {}
    max_new_tokens: ClassVar[int] = 128
    variants: ClassVar[Mapping[str, str]] = {"lite": "50 questions a task", "all": "23,609 questions in English"}
    files: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "lite": ("mme_realworld_lite.tsv", "MME-RealWorld-Lite.tsv", "MME_RealWorld_Lite.json", "train-*.parquet"),
        "all": ("MME-RealWorld.tsv", "MME_RealWorld.json", "all/data/train-*.parquet", "train-*.parquet"),
    }
    images: ClassVar[tuple[str, ...]] = ("image", "bytes")

    def load(self, data: Path, scoring: Scoring | None) -> list[Sample]:
        """Reads the table; Parquet of either variant has the same name, so that the number of questions tells which."""
        asked = self.variant
        samples = super().load(data, scoring)
        if len(samples) > _MOST_LITE:
            if asked == "lite":
                raise InputError(f"{data}: {len(samples)} questions, which are not the lite variant's")
            self.variant = "all"
        return samples

    def sample(self, record: Record, data: Path, number: int) -> Sample:
        """The release's JSON names the same fields otherwise."""
        options = record.texts("multi-choice options", "Answer choices")
        task = record.text("category", "Task")
        field = record.optional("Subtask") or record.optional("l2-category")
        listed = "\n".join(options)
        return Sample(
            id=record.identity("index", "Question_id"),
            category=task.split("/")[-1],
            images=record.images(*self.images) or (data / record.text("Image", "image_path"),),
            prompt=f"{record.prompt('question', 'Text')} The choices are listed below:\n{listed}\n{_REQUEST}",
            options=tuple(re.sub(r"^\([A-E]\) *", "", option) for option in options),
            reference=record.letter("answer" if "answer" in record else "Ground truth", len(options)),
            also=tuple(dict.fromkeys(filter(None, (task.split("/")[0] if "/" in task else "", field)))),
        )

    def grade(self, sample: Sample, prediction: Mapping[str, Any]) -> Grade:
        """Right if the first capital from A to E is the letter; a text with none may be part of an option's words."""
        text = prediction["text"].strip()
        for prefix in _PREFIXES:
            text = text.replace(prefix, "")
        found = re.search("[ABCDE]", text)
        letter = found[0] if found else None
        if letter is None and text and len(text.split()) <= 10:
            choices = [f"({place})" for place in LETTERS[:5]]
            letter = next((choice[1] for choice in choices if text.lower() in choice.lower()), None)
        return Grade(letter == sample.reference, parseable=letter is not None)
