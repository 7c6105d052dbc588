"""AI2D (Kembhavi et al. 2016): questions about diagrams of school science; its test split.

``AI2D_TEST.tsv`` and ``AI2D_TEST_NO_MASK.tsv`` of VLMEvalKit, or lmms-lab's Parquet (``ai2d``, ``ai2d-no-mask``), whose
answer is the option's place; or the release (``ai2d-all.zip``)::

    questions/1.png.json      {"questions": {text: {"questionId", "answerTexts", "correctAnswer", "abcLabel"}, …}}
    images/1.png              and, of questions about labels (``abcLabel``), abc_images/1.png
    ai2d_test_ids.csv         the test split's images, a number a line

whose labels stay as they are in questions that are not about them, so that it is the variant ``no-mask``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from llava_s2.eval.benchmark import HubFiles, Sample, Scoring
from llava_s2.eval.choice import ChoiceBenchmark
from llava_s2.eval.schema import LETTERS, Record, unique
from llava_s2.eval.tables import find_file, read_value


class AI2D(ChoiceBenchmark):
    """AI2D by letter."""

    name: ClassVar[str] = "ai2d"
    title: ClassVar[str] = "AI2D"
    hub: ClassVar[Mapping[str, HubFiles]] = {
        "mask": HubFiles("lmms-lab/ai2d", ("data/test-*",)),
        "no-mask": HubFiles("lmms-lab/ai2d-no-mask", ("data/test-*",), folder="no_mask"),
    }
    variants: ClassVar[Mapping[str, str]] = {
        "mask": "labels in the diagram replaced by letters, as usual",
        "no-mask": "labels in the diagram left as they are",
    }
    files: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "mask": ("AI2D_TEST.tsv", "test-*.parquet"),
        "no-mask": ("AI2D_TEST_NO_MASK.tsv", "no_mask/test-*.parquet", "no_mask/data/test-*.parquet"),
    }
    identities: ClassVar[tuple[str, ...]] = ()

    def load(self, data: Path, scoring: Scoring | None) -> list[Sample]:
        """Reads the table, or the release's files of the images of the test split."""
        if self.variant == "mask" or not (data / "questions").is_dir():
            return super().load(data, scoring)
        self.variant, self._scoring = "no-mask", scoring
        (table,) = find_file(data, ("ai2d_test_ids.csv",))
        samples: list[Sample] = []
        for image in (f"{number}.png" for number in table.read_text(encoding="utf-8").split()):
            path = data / "questions" / f"{image}.json"
            for text, fields in Record(read_value(path), str(path)).get("questions", {}).items():
                folder = "abc_images" if fields.get("abcLabel") else "images"
                row: dict[str, Any] = {"question": text, "choices": fields.get("answerTexts"), "image": image}
                row |= {"answer": str(fields.get("correctAnswer")), "image_path": f"{folder}/{image}"}
                samples.append(self.sample(Record(row, f"{path}, {fields.get('questionId')}"), data, len(samples)))
        unique([sample.id for sample in samples], table)
        return samples

    def answer_letter(self, record: Record, options: list[str]) -> str:
        """A letter in the one copy, a place from 0 in the other."""
        answer = record.first("answer")
        if str(answer).isdecimal() and record.number("answer") < len(options):
            return LETTERS[record.number("answer")]
        return record.letter("answer", len(options))
