"""MMMU (Yue et al. 2024): college questions of 30 subjects, some with several images.

Layout of the official release (``MMMU/MMMU`` on the hub), of a copy with all subjects in one table, or of VLMEvalKit::

    Accounting/dev-00000-of-00001.parquet, validation-….parquet, test-….parquet      and so on, a folder a subject
    validation-00000-of-00001.parquet, also in data/; either also as the hub converts them, validation/0000.parquet
    MMMU_DEV_VAL.tsv

with columns ``id``, ``question``, ``options`` (a Python list as text), ``answer``, ``question_type`` and ``image_1`` to
``image_7``. Answers are read and graded by the rules of the official code (``eval_utils.py``), slips included.
"""

import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from llava_s2.errors import InputError
from llava_s2.eval.benchmark import Benchmark, Grade, HubFiles, Sample, Scoring
from llava_s2.eval.llava_prompts import CHINESE_LETTER_SENTENCE, LETTER_SENTENCE, NEW_TOKENS, SHORT_ANSWER, lettered
from llava_s2.eval.run_folder import write_json
from llava_s2.eval.schema import LETTERS, Record, as_list, refuse_missing, unique
from llava_s2.eval.tables import find_file, matches, read_records
from llava_s2.eval.vlmevalkit import RULES, read_by_rule

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
_CHOICE = "multiple-choice"

_CONCLUSIONS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),  # with thousands' commas
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),  # scientific
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),  # plain
)


class MMMU(Benchmark):
    """MMMU with its own prompts for LLaVA-1.5, showing every image of a question; or as VLMEvalKit asks it."""

    name: ClassVar[str] = "mmmu"
    hub: ClassVar[Mapping[str, HubFiles]] = {
        variant: HubFiles("MMMU/MMMU", (f"*/{'validation' if variant == 'vlmevalkit' else variant}-*",))
        for variant in ("validation", "dev", "test", "vlmevalkit")
    }
    protocols: ClassVar[Mapping[Scoring, str]] = {
        "generate": "MMMU: greedy decoding of MMMU's own prompts for LLaVA-1.5, all images first, MMMU's own parsing"
    }
    kit_protocol: ClassVar[str] = (
        "MMMU as VLMEvalKit of April to July 2024: greedy decoding of its prompt for LLaVA, several images where the "
        "question has them, one before it"
    )
    categories: ClassVar[Mapping[str, str]] = {
        category: heading
        for discipline, subjects in DISCIPLINES.items()
        for category, heading in (
            (discipline, discipline),
            *((subject, "  " + subject.replace("_", " ")) for subject in subjects),
        )
    }
    max_new_tokens: ClassVar[int] = NEW_TOKENS
    variants: ClassVar[Mapping[str, str]] = {
        "validation": "900 questions",
        "dev": "150 questions",
        "test": "10,500 questions, for the server",
        "vlmevalkit": "the 900 of validation, asked and read as VLMEvalKit does",
    }
    rules: ClassVar[Mapping[str, str]] = RULES
    guesses: ClassVar[bool] = True

    def protocol(self, scoring: Scoring) -> str:
        """VLMEvalKit's variant has a prompt and a rule of its own."""
        kit = f"{self.kit_protocol}; {self.rules[self.rule]}"
        return kit if self.variant == "vlmevalkit" else self.protocols[scoring]

    def load(self, data: Path, scoring: Scoring | None) -> list[Sample]:
        """Reads the split: a folder a subject, of all 30; or one table."""
        kit = self.variant == "vlmevalkit"
        records = self._records(data)
        samples = []
        lacking = []
        for record in records:
            samples.append(_kit_sample(record) if kit else _sample(record))
            if scoring is not None and (unseen := _lacks(record, samples[-1])):
                lacking.append(f"{record.where}: no {unseen}, which the question shows")
            split = "validation" if kit else self.variant
            if "split" not in record and not samples[-1].id.startswith(f"{split}_"):
                raise record.fault(f"question {samples[-1].id} is not of {split}; is the file another split's?")
        refuse_missing(lacking, len(samples))
        unique([sample.id for sample in samples], data)
        return samples

    def _records(self, data: Path) -> list[Record]:
        splits = ("validation", "dev", "test")
        patterns = {s: (f"*/{s}-*.parquet", f"{s}-*.parquet") for s in splits}
        if self.variant is None and data.is_dir():
            present = (s for s in splits if any(matches(data, name) for name in patterns[s]))
            self.variant = next(present, "validation" if any(data.glob("MMMU_DEV_VAL.tsv")) else None)
        split = "validation" if self.variant in (None, "vlmevalkit") else str(self.variant)
        if (data / "MMMU_DEV_VAL.tsv").is_file() and not matches(data, patterns[split][0]):
            records = read_records(data / "MMMU_DEV_VAL.tsv", images=("image",))
            return [_from_kit(record) for record in records if record.get("split") == split]
        subjects = [subject for subjects in DISCIPLINES.values() for subject in subjects]
        folders = [subject for subject in subjects if (data / subject).is_dir()]
        if not folders:
            paths = find_file(data, patterns[split][1:])
            return [record for path in paths for record in read_records(path, images=_IMAGES)]
        if missing := [subject for subject in subjects if not matches(data / subject, f"{split}-*.parquet")]:
            raise InputError(f"{data}: {len(missing)} of 30 subjects have no {split}-*.parquet: {', '.join(missing)}")
        paths = [path for subject in subjects for path in find_file(data / subject, (f"{split}-*.parquet",))]
        records = [record for path in paths for record in read_records(path, images=_IMAGES)]
        if strange := [r for r in records if _subject(r) not in Path(r.where.rpartition(", row")[0]).parts[-3:-1]]:
            raise strange[0].fault(f"question {strange[0].get('id')} is of another subject than the file's folder")
        return records

    def grade(self, sample: Sample, prediction: Mapping[str, Any]) -> Grade | None:
        """By the official parsing; a letter that cannot be read is wrong, or guessed where a seed is set."""
        if sample.reference is None:
            return None
        answers = sample.reference["answer"]
        if self.variant == "vlmevalkit":
            # An open question becomes one of two options, of which its answer is the first.
            options = sample.options or (answers[0], "Other Answers")
            letter = read_by_rule(prediction["text"], options, self.rule)
            return Grade(letter in (answers if sample.options else ("A",)), parseable=letter is not None)
        if not sample.reference["options"]:
            return Grade(is_open_answer(answers, prediction["text"]))
        read = parse_letter(prediction["text"], sample.options)
        return Grade(self._letter(sample, prediction["text"]) in answers, parseable=read is not None)

    def _letter(self, sample: Sample, text: str) -> str | None:
        letter = parse_letter(text, sample.options)
        if letter is None and self.seed is not None:
            return random.Random(f"{self.seed} {sample.id}").choice(LETTERS[: len(sample.options)])
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
    lettered = dict(zip(LETTERS, options, strict=False))
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
    expected = [value for reference in references for value in comparable(reference)]
    conclusions = _conclusions(text)
    numbers = [found for part in conclusions for pattern in _NUMBERS for found in pattern.findall(part)]
    for value in (value for part in (*conclusions, *numbers) for value in comparable(part)):
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


def comparable(text: str) -> list[str | float]:
    """A number rounded to two decimals, or the text in lower case; a lone character only at a word's edge."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def _sample(record: Record) -> Sample:
    options, answers = _options(record), _answers(record)
    question = record.prompt("question")
    listed = "".join(f"({letter}) {option}\n" for letter, option in zip(LETTERS, options, strict=False))
    prompt = f"{question}\n{listed}\n{LETTER_SENTENCE}" if options else f"{question}\n{SHORT_ANSWER}"
    if "<image>" in prompt:
        raise record.fault("an option contains <image>; images are placed before the question")
    return _built(record, prompt, options, answers, record.images(*_IMAGES))


def _kit_sample(record: Record) -> Sample:
    """As VLMEvalKit's class of LLaVA asked, with the images in their places; a single one stands first as LLaVA's do.

    The answer to an open question is its cell's text, a list of several included.
    """
    options, question = _options(record), record.prompt("question")
    answers = _answers(record) if options else [record.text("answer")]
    chinese = re.search("[\u4e00-\u9fff]", question + "".join(options))
    if options:
        prompt = lettered(question, options, CHINESE_LETTER_SENTENCE if chinese else LETTER_SENTENCE)
    else:
        prompt = f"{question}\n{'请直接回答问题。' if chinese else 'Answer the question directly.'}"
    images = record.images(*_IMAGES)
    named = [int(number) for number in re.findall(r"<image (\d)>", prompt)]
    if not named or max(named) > len(images):
        return _built(record, prompt, options, answers, images)
    shown = tuple(images[number - 1] for number in named)
    return _built(record, re.sub(r"<image \d>", "<image>", prompt), options, answers, shown, interleaved=True)


def _built(
    record: Record, prompt: str, options: list[str], answers: list[str] | None, images: tuple[Any, ...], **more: Any
) -> Sample:
    subject = _subject(record)
    return Sample(
        id=record.identity("id"),
        category=next((d for d, subjects in DISCIPLINES.items() if subject in subjects), "other"),
        images=images,
        prompt=prompt,
        options=tuple(options),
        reference=None if answers is None else {"options": options, "answer": answers},
        also=(subject,),
        **more,
    )


def _subject(record: Record) -> str:
    """Of the id, as in ``validation_Art_Theory_12``; or of a field."""
    parts = record.identity("id").split("_")
    named = record.optional("subject", "category").replace(" ", "_")
    return "_".join(parts[1:-1]) if len(parts) > 2 else named


def _options(record: Record) -> list[str]:
    options = record.texts("options") if record.first("options") is not None else []
    kind = record.text("question_type")
    if kind not in (_CHOICE, "open") or (kind == _CHOICE) != bool(options) or len(options) > len(LETTERS):
        raise record.fault(f"question_type {kind!r} with {len(options)} options")
    return options


def _answers(record: Record) -> list[str] | None:
    answer = record.text("answer")
    if answer == "?":  # the test split's
        return None
    listed = as_list(answer) if answer.startswith("[") and answer.endswith("]") else [answer]
    answers = [str(text) for text in listed or ()]
    options = _options(record)
    if not answers or (options and not set(answers) <= set(LETTERS[: len(options)])):
        raise record.fault(f"the answer {answer!r} is no letter of {len(options)} options")
    return answers


def _from_kit(record: Record) -> Record:
    """A row of VLMEvalKit's table as one of the release."""
    options = record.options() if record.optional("A") else []
    images = {f"image_{number}": image for number, image in enumerate(record.images("image"), start=1)}
    fields = {"options": options, "question_type": _CHOICE if options else "open", **images}
    return Record({**record, **fields}, record.where)


def _lacks(record: Record, sample: Sample) -> str | None:
    """The first image that is not there: one that the question names, or any at all."""
    text = " ".join((record.text("question"), *sample.options))
    named = dict.fromkeys(re.findall(r"<(image \d+)>", text)) or ["image 1"]
    return next((column for name in named if record.first(column := name.replace(" ", "_")) is None), None)
