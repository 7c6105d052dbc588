"""ScienceQA (Lu et al. 2022): school questions with options, about half of them with an image; its test split.

Layout of LLaVA's evaluation folder::

    llava_test_CQM-A.json     [{"id", "image" (if any), "conversations": [question with lettered options, letter]}, …]
    images/test/4/image.png

or lmms-lab's Parquet (``ScienceQA-FULL/test-*.parquet`` or ``ScienceQA-IMG/test-*.parquet``), or VLMEvalKit's
``ScienceQA_TEST.tsv``, whose questions all have an image.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from llava_s2.eval.benchmark import Benchmark, Grade, HubFiles, Sample, Scoring
from llava_s2.eval.choice import split_options
from llava_s2.eval.llava_prompts import LETTER_SENTENCE, MANY_NEW_TOKENS, lettered
from llava_s2.eval.schema import LETTERS, Record, unique
from llava_s2.eval.tables import find_file, read_records

_FILES = ("llava_test_CQM-A.json", "ScienceQA-FULL/test-*.parquet", "ScienceQA-IMG/test-*.parquet", "test-*.parquet")


class ScienceQA(Benchmark):
    """ScienceQA with LLaVA-1.5's prompt and the letters of its ``eval_science_qa.py``."""

    name: ClassVar[str] = "scienceqa"
    hub: ClassVar[Mapping[str, HubFiles]] = {"": HubFiles("lmms-lab/ScienceQA", ("ScienceQA-FULL/test*",))}
    protocols: ClassVar[Mapping[Scoring, str]] = {
        "generate": "ScienceQA: greedy decoding of LLaVA-1.5's letter prompt, letters as LLaVA reads them",
        "likelihood": "ScienceQA likelihood: the option with the smallest mean cross-entropy",
    }
    categories: ClassVar[Mapping[str, str]] = {"image": "with an image", "text": "text alone"}
    max_new_tokens: ClassVar[int] = MANY_NEW_TOKENS

    def load(self, data: Path, scoring: Scoring | None) -> list[Sample]:
        """Reads the questions; a category says whether there is an image."""
        paths = find_file(data, (*_FILES, "ScienceQA_TEST.tsv"))
        records = [record for path in paths for record in read_records(path, images=("image",))]
        llavas = paths[0].suffix == ".json"
        samples = [
            _llavas(record, data, scoring) if llavas else _released(record, number, scoring)
            for number, record in enumerate(records)
        ]
        unique([sample.id for sample in samples], paths[0])
        return samples

    def grade(self, sample: Sample, prediction: Mapping[str, Any]) -> Grade:
        """Right if the text is the letter, begins with it as in ``B. `` or says ``The answer is B.`` once."""
        text = prediction["text"]
        if "losses" in prediction and text in sample.options:
            return Grade(sample.options[LETTERS.index(sample.reference)] == text)
        letter = _letter(text)
        return Grade(letter == sample.reference, parseable=letter is not None)


def _letter(text: str) -> str | None:
    if text in tuple("ABCDE"):
        return text
    if re.match(r"[A-E]\. ", text):
        return text[0]
    stated = re.findall(r"The answer is ([A-Z]).", text)
    return stated[0] if len(stated) == 1 else None


def _llavas(record: Record, data: Path, scoring: Scoring | None) -> Sample:
    turns = record.get("conversations")
    if not isinstance(turns, list) or len(turns) < 2 or not all(isinstance(turn, dict) for turn in turns):
        raise record.fault("'conversations' must be a list of a question and its answer")
    asked = Record(turns[0], record.where).text("value").replace("<image>", "").strip()
    question, options = split_options(asked)
    return Sample(
        id=record.identity("id"),
        category="image" if record.first("image") else "text",
        images=(data / "images" / "test" / record.text("image"),) if record.first("image") else (),
        prompt=question if scoring == "likelihood" else f"{asked}\n{LETTER_SENTENCE}",
        options=tuple(options),
        reference=Record(turns[1], record.where).letter("value", 5),
    )


def _released(record: Record, number: int, scoring: Scoring | None) -> Sample:
    options = record.options() if "A" in record else record.texts("choices")
    hint = record.optional("hint")
    question = (f"Context: {hint}\n" if hint else "") + record.prompt("question")
    answer = record.first("answer")
    return Sample(
        id=record.identity("index", "id") if "index" in record or "id" in record else str(number),
        category="image" if record.images("image") else "text",
        images=record.images("image"),
        prompt=question if scoring == "likelihood" else lettered(question, options),
        options=tuple(options),
        reference=record.letter("answer", len(options))
        if isinstance(answer, str)
        else LETTERS[record.number("answer")],
    )
