"""What multiple-choice benchmarks have in common: records of a table, LLaVA-1.5's letter prompt, and one rule a run."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from llava_s2.eval.benchmark import Benchmark, Grade, Sample, Scoring
from llava_s2.eval.llava_prompts import lettered
from llava_s2.eval.schema import LETTERS, Record, refuse_missing, unique
from llava_s2.eval.tables import find_file, matches, read_records
from llava_s2.eval.vlmevalkit import RULES, read_by_rule


class TableBenchmark(Benchmark):
    """A benchmark that is a table of records; a subclass says which files, and what a record is as a sample."""

    files: ClassVar[Mapping[str, tuple[str, ...]]]
    """Variant -> names or patterns of its file, tried in order; ``""`` where there are no variants."""
    field: ClassVar[str | None] = None
    """Of a JSON file that is an object, where the records are."""
    images: ClassVar[tuple[str, ...]] = ("image",)
    """Columns that hold images inside the file."""

    def load(self, data: Path, scoring: Scoring | None) -> list[Sample]:
        """Reads the variant's files."""
        paths = self._find(data)
        records = [record for path in paths for record in read_records(path, self.field, self.images)]
        samples = [self.sample(record, data, number) for number, record in enumerate(records)]
        if scoring is not None:
            blind = [record.where for record, sample in zip(records, samples, strict=True) if not sample.images]
            refuse_missing([f"{where}: no image, neither its own nor another row's" for where in blind], len(records))
        unique([sample.id for sample in samples], paths[0])
        return samples

    def sample(self, record: Record, data: Path, number: int) -> Sample:
        """The record as a question; ``number`` counts the records from 0."""
        raise NotImplementedError

    def _find(self, data: Path) -> list[Path]:
        if not self.variants:
            return find_file(data, self.files[""])
        if self.variant is None and data.is_dir():
            self.variant = next((v for v in self.variants if any(matches(data, n) for n in self.files[v])), None)
        wanted = self.variant or next(iter(self.variants))
        return find_file(data, self.files[wanted], f" of variant {wanted}")


class ChoiceBenchmark(TableBenchmark):
    """Multiple choice, by letter (default) or by the likelihood of the options' texts."""

    rules: ClassVar[Mapping[str, str]] = RULES
    categories: ClassVar[Mapping[str, str]] = {}
    max_new_tokens: ClassVar[int] = 128
    identities: ClassVar[tuple[str, ...]] = ("index", "question_id", "id")

    def __init_subclass__(cls) -> None:
        if "protocols" not in vars(cls) and "title" in vars(cls):
            cls.protocols = {
                "generate": f"{vars(cls)['title']}: greedy decoding of LLaVA-1.5's letter prompt, images first",
                "likelihood": f"{vars(cls)['title']} likelihood: the option with the smallest mean cross-entropy",
            }

    def load(self, data: Path, scoring: Scoring | None) -> list[Sample]:
        """Reads the variant's files; likelihood asks the bare question."""
        self._scoring = scoring
        return super().load(data, scoring)

    def sample(self, record: Record, data: Path, number: int) -> Sample:
        question, options = self.question(record)
        if len(options) < 2:
            raise record.fault(f"{len(options)} option(s); a question to choose from has 2 or more")
        if hint := record.optional("hint"):
            question = f"{hint}\n{question}"
        category, also = self.category(record)
        return Sample(
            id=record.identity(*self.identities) if self.identities else str(number),
            category=category,
            images=record.images(*self.images) or self.image_file(record, data),
            prompt=question if self._scoring == "likelihood" else lettered(question, options),
            options=tuple(options),
            reference=self.answer_letter(record, options),
            also=also,
            group=self.group(record, number),
        )

    def question(self, record: Record) -> tuple[str, list[str]]:
        """The question and its options: columns A, B, …, a list of choices, or lines of the question's text."""
        if "A" in record and (options := record.options()):
            return record.prompt("question"), options
        for name in ("choices", "options", "multi-choice options"):
            if record.first(name) is not None:
                return record.prompt("question"), record.texts(name)
        return split_options(record.prompt("question"))

    def category(self, record: Record) -> tuple[str, tuple[str, ...]]:
        """Of a record: its category, and others that it counts in."""
        return record.optional("category") or "all", ()

    def answer_letter(self, record: Record, options: list[str]) -> str:
        """The right letter."""
        return record.letter("answer", len(options))

    def group(self, record: Record, number: int) -> str:
        """Of variants of one question the same; empty for none."""
        return ""

    def image_file(self, record: Record, data: Path) -> tuple[Path, ...]:
        """Images beside the table, where they are not inside."""
        name = record.first("image_path", "image")
        return (data / name,) if isinstance(name, str) and name else ()

    def grade(self, sample: Sample, prediction: Mapping[str, Any]) -> Grade | None:
        """Right if the text names the right option by the rule; of a likelihood's prediction, if it is its text."""
        if sample.reference is None:
            return None
        if "losses" in prediction and prediction["text"] in sample.options:
            return Grade(sample.options[LETTERS.index(sample.reference)] == prediction["text"])
        letter = read_by_rule(prediction["text"], sample.options, self.rule)
        return Grade(letter == sample.reference, parseable=letter is not None)


def split_options(text: str) -> tuple[str, list[str]]:
    """The question and the options that stand in its text, as ``(A) …``, ``A. …`` or ``A: …``, on lines or on one."""
    for style in (r"\({}\)", r"(?<![A-Za-z]){}[.:)]"):
        places: list[re.Match[str]] = []
        for letter in LETTERS:
            found = re.compile(style.format(f"(?i:{letter})") + r"[ \t]*").search(
                text, places[-1].end() if places else 0
            )
            if found is None:
                break
            places.append(found)
        if len(places) > 1:
            ends = [place.start() for place in places[1:]]
            options = [text[a.end() : b].strip().rstrip(",;") for a, b in zip(places[:-1], ends, strict=True)]
            last, _, rest = text[places[-1].end() :].strip().partition("\n")
            question = re.sub(r"\s*(?i:options|choices):?\s*$", "", text[: places[0].start()]).strip()
            return "\n".join(filter(None, (question, _kept(rest)))), [*options, last.strip()]
    return text, []


def _kept(rest: str) -> str:
    """What stands after the options, but for a request to answer with a letter."""
    return "" if re.search(r"(?i)letter|option|choice", rest) else rest.strip()
