"""MMMU (Yue et al. 2024): college questions of 30 subjects, some with several images.

Layout of the official release (``MMMU/MMMU`` on the hub)::

    Accounting/dev-00000-of-00001.parquet, validation-….parquet, test-….parquet      and so on, a folder a subject

with columns ``id``, ``question``, ``options`` (a Python list as text), ``answer``, ``question_type`` and ``image_1`` to
``image_7``. Answers are read and graded by the rules of the official code (``eval_utils.py``), slips included.
"""

import ast
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from llava_s2.errors import InputError
from llava_s2.eval.benchmark import Benchmark, Grade, Sample, Scoring
from llava_s2.eval.parquet import find_shards, read_rows
from llava_s2.eval.predictions import write_json
from llava_s2.eval.records import prompt_of, refuse_missing, text_of, unique
from llava_s2.eval.vqa_accuracy import SHORT_ANSWER
from llava_s2.eval.vstar import LETTER_SENTENCE

DISCIPLINES = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science",
        "Clinical_Medicine",
        "Diagnostics_and_Laboratory_Medicine",
        "Pharmacy",
        "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        "Agriculture",
        "Architecture_and_Engineering",
        "Computer_Science",
        "Electronics",
        "Energy_and_Power",
        "Materials",
        "Mechanical_Engineering",
    ),
}
"""Discipline -> its subjects, in the order of the official table."""

_IMAGES = tuple(f"image_{number}" for number in range(1, 8))
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_CHOICE = "multiple-choice"

_CONCLUSIONS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),  # with thousands' commas
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),  # scientific
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),  # plain
)


class MMMU(Benchmark):
    """MMMU with its own prompts for LLaVA-1.5; unlike its code for LLaVA, every image of a question is shown."""

    name: ClassVar[str] = "mmmu"
    protocols: ClassVar[Mapping[Scoring, str]] = {
        "generate": "MMMU: greedy decoding of MMMU's own prompts for LLaVA-1.5, all images first, MMMU's own parsing"
    }
    categories: ClassVar[Mapping[str, str]] = {
        category: heading
        for discipline, subjects in DISCIPLINES.items()
        for category, heading in (
            (discipline, discipline),
            *((subject, "  " + subject.replace("_", " ")) for subject in subjects),
        )
    }
    max_new_tokens: ClassVar[int] = 128
    variants: ClassVar[Mapping[str, str]] = {
        "validation": "900 questions",
        "dev": "150 questions",
        "test": "10,500 questions, for the server",
    }
    guesses: ClassVar[bool] = True

    def load(self, data: Path, scoring: Scoring | None) -> list[Sample]:
        """Reads the split of all 30 subjects."""
        if not data.is_dir():
            raise InputError(f"{data}: no such folder; --data names the MMMU folder that holds Accounting/ and others")
        self.variant = self.variant or next((name for name in self.variants if any(data.glob(f"*/{name}-*"))), None)
        if self.variant is None:
            raise InputError(f"{data}: no */validation-*.parquet; docs/data.md says where the data comes from")
        samples = []
        missing = []
        lacking = []
        for discipline, subjects in DISCIPLINES.items():
            for subject in subjects:
                paths = find_shards(data / subject, self.variant)
                if not paths:
                    missing.append(subject)
                for path in paths:
                    columns = ("id", "question", "options", "answer", "question_type")
                    for number, row in enumerate(read_rows(path, columns, _IMAGES), start=1):
                        sample = _sample(row, discipline, subject, f"{path}, row {number}")
                        if unseen := _lacks(row, sample.prompt):
                            lacking.append(f"{path}, row {number}: no {unseen}, which the question shows")
                        if not sample.id.startswith(f"{self.variant}_{subject}_"):
                            raise InputError(
                                f"{path}, row {number}: question {sample.id} is not of {self.variant}, {subject}; "
                                "is the file another split's or subject's?"
                            )
                        samples.append(sample)
        if missing:
            raise InputError(
                f"{data}: {len(missing)} of 30 subjects have no {self.variant}-*.parquet: {', '.join(missing)}"
            )
        refuse_missing(lacking, len(samples))
        unique([sample.id for sample in samples], data)
        return samples

    def grade(self, sample: Sample, prediction: Mapping[str, Any]) -> Grade | None:
        """By the official parsing; a letter that cannot be read is wrong, or guessed where a seed is set."""
        if sample.reference is None:
            return None
        if not sample.reference["options"]:
            return Grade(is_open_answer(sample.reference["answer"], prediction["text"]))
        letter = self._letter(sample, prediction["text"])
        return Grade(letter in sample.reference["answer"], parseable=letter is not None)

    def _letter(self, sample: Sample, text: str) -> str | None:
        letter = parse_letter(text, sample.options)
        if letter is None and self.seed is not None:
            return random.Random(f"{self.seed} {sample.id}").choice(_LETTERS[: len(sample.options)])
        return letter

    def write_submission(
        self, samples: Sequence[Sample], predictions: Mapping[str, Mapping[str, Any]], folder: Path
    ) -> Path | None:
        """Of the test split, ``{id: letter or answer}`` as the EvalAI server takes it."""
        if self.variant != "test":
            return None
        texts = {sample.id: predictions[sample.id]["text"] for sample in samples}
        letters = {s.id: self._letter(s, texts[s.id]) for s in samples if s.options}
        path = folder / "mmmu_test.json"
        write_json(path, {identity: letters.get(identity) or text for identity, text in texts.items()})
        return path


def parse_letter(text: str, options: Sequence[str]) -> str | None:
    """The letter that an answer names by the official rules, or None where the official code would guess.

    In this order: letters in brackets; letters between spaces; in an answer of more than five words, options word for
    word. Of several the one named last.
    """
    for mark in ",.!?;:'":
        text = text.strip(mark)
    text = f" {text} "
    lettered = dict(zip(_LETTERS, options, strict=False))
    places = {letter: text.rfind(f"({letter})") for letter in lettered}
    if max(places.values()) < 0:
        places = {letter: text.rfind(f" {letter} ") for letter in lettered}
    if max(places.values()) < 0 and len(text.split()) > 5:
        places = {letter: text.lower().rfind(option.lower()) for letter, option in lettered.items()}
    letter = max(places, key=places.__getitem__)
    return letter if places[letter] >= 0 else None


def is_open_answer(references: Sequence[str], text: str) -> bool:
    """Whether an answer in free form is right by the official rules.

    Right is an answer whose conclusions contain a reference's text, or a number equal to a reference to two decimals.
    """
    expected = [value for reference in references for value in _comparable(reference)]
    conclusions = _conclusions(text)
    numbers = [found for part in conclusions for pattern in _NUMBERS for found in pattern.findall(part)]
    for value in (value for part in (*conclusions, *numbers) for value in _comparable(part)):
        if isinstance(value, str):
            if any(isinstance(reference, str) and reference in value for reference in expected):
                return True
        elif value in expected:
            return True
    return False


def _conclusions(text: str) -> list[str]:
    """Of each line, the shortest part after a word that introduces a result; the whole text if there is none."""
    text = text.strip().strip(".").lower()
    lines = text.split("\n")
    found = []
    for number, line in enumerate(lines, start=1):
        shortest = ""
        for word in (*_CONCLUSIONS, "=") if number == len(lines) else _CONCLUSIONS:
            if word in line:
                part = line.split(word)[-1].strip()
                # An empty part gives way to the next word's, as in the official code.
                if not shortest or len(part) < len(shortest):
                    shortest = part
        if shortest and shortest not in tuple(":,.!?;'"):
            found.append(shortest)
    return found or [text]


def _comparable(text: str) -> list[str | float]:
    """A number rounded to two decimals, or the text in lower case; a lone character only at a word's edge."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def _sample(row: Mapping[str, Any], discipline: str, subject: str, where: str) -> Sample:
    options = _texts(row.get("options"), where, "options")
    kind = text_of(row, "question_type", where)
    if kind not in (_CHOICE, "open") or (kind == _CHOICE) != bool(options) or len(options) > len(_LETTERS):
        raise InputError(f"{where}: question_type {kind!r} with {len(options)} options")
    question = prompt_of(row, "question", where)
    answer = text_of(row, "answer", where)
    if options:
        listed = "".join(f"({letter}) {option}\n" for letter, option in zip(_LETTERS, options, strict=False))
        prompt = f"{question}\n{listed}\n{LETTER_SENTENCE}"
    else:
        prompt = f"{question}\n{SHORT_ANSWER}"
    if "<image>" in prompt:
        raise InputError(f"{where}: an option contains <image>; images are placed before the question")
    reference = None
    if answer != "?":  # the test split's
        answers = _texts(answer, where, "answer") if answer.startswith("[") and answer.endswith("]") else [answer]
        if options and not set(answers) <= set(_LETTERS[: len(options)]):
            raise InputError(f"{where}: the answer {answer!r} is no letter of {len(options)} options")
        reference = {"options": options, "answer": answers}
    return Sample(
        id=text_of(row, "id", where),
        category=discipline,
        images=tuple(row[image] for image in _IMAGES if row[image] is not None),
        prompt=prompt,
        options=tuple(options),
        reference=reference,
        also=(subject,),
    )


def _lacks(row: Mapping[str, Any], prompt: str) -> str | None:
    """The first image that is not there: one that the prompt names, or any at all."""
    named = dict.fromkeys(re.findall(r"<(image \d+)>", prompt)) or ["image 1"]
    return next((column for name in named if row.get(column := name.replace(" ", "_")) is None), None)


def _texts(value: Any, where: str, field: str) -> list[str]:
    """A Python list of texts written as a text, as the release has it."""
    try:
        texts = ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError):
        texts = None
    if not isinstance(texts, list):
        raise InputError(f"{where}: '{field}' is not a list written as a text")
    return [str(text) for text in texts]
