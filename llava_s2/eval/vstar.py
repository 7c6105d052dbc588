"""V*Bench (Wu & Xie 2023): 191 questions about small things in large photos.

Layout of the official release (``craigwu/vstar_bench`` on the hub)::

    direct_attributes/NAME.jpg + NAME.json     115 questions, attribute of an object
    relative_position/NAME.jpg + NAME.json      76 questions, spatial relation of two
    test_questions.jsonl                       the same questions with lettered options
    default/test/0000.parquet                  what the hub makes of that file; other copies have the images inside

``NAME.json`` has ``question``, ``options`` (sentences, the first is correct), ``target_object`` and ``bbox``; a line of
``test_questions.jsonl`` has ``question_id``, ``image``, ``category``, ``text`` (question, lettered options and the
sentence that asks for a letter) and ``label``.
"""

import json
import random
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from llava_s2.errors import InputError
from llava_s2.eval.benchmark import Benchmark, Embedded, Grade, Sample, Scoring
from llava_s2.eval.parquet import read_rows
from llava_s2.eval.records import prompt_of

LETTER_SENTENCE = "Answer with the option's letter from the given choices directly."
"""LLaVA-1.5's request for a letter, which the official questions end with."""

# In brackets; at the start or in an enumeration, before punctuation or a conjunction; after "answer is".
_NAMED_LETTER = re.compile(
    r"\(([A-Z])\)"
    r"|(?:^|[,;/] ?|\b(?:and|or) )([A-Z])(?=[.:,;/)]|$| and | or )"
    r"|\b(?:[Aa]nswer|[Oo]ption)(?: is)?:? ([A-Z])\b"
)
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_TABLES = ("*.parquet", "data/*.parquet", "test/*.parquet", "default/test/*.parquet")


@dataclass(frozen=True)
class Answers:
    """The options of one question.

    Attributes:
        lettered: the options by letter, A first.
        correct: index of the right one in ``lettered``.
        sentences: the options of ``NAME.json``, the right one first; empty where that file does not exist.
    """

    lettered: tuple[str, ...]
    correct: int
    sentences: tuple[str, ...]


class VStar(Benchmark):
    """V*, by likelihood (the protocol of the published numbers) or by letter."""

    name: ClassVar[str] = "vstar"
    protocols: ClassVar[Mapping[Scoring, str]] = {
        "likelihood": "V* likelihood: the option with the smallest mean cross-entropy as the reply",
        "generate": "V* letter: greedy decoding of LLaVA-1.5's letter prompt",
    }
    categories: ClassVar[Mapping[str, str]] = {"direct_attributes": "attribute", "relative_position": "spatial"}
    max_new_tokens: ClassVar[int] = 16

    def load(self, data: Path, scoring: Scoring | None) -> list[Sample]:
        """Reads the folder; a question's id is ``category/NAME``.

        Letters are those of ``test_questions.jsonl`` where that file exists; likelihood, which shows none, reads it
        only where there is nothing else. Without it ``generate`` shuffles the options, seeded with the question's id,
        so that A is not always right. A Parquet file stands for ``test_questions.jsonl``, and with its images inside
        for the folders too.
        """
        folders = " and ".join(f"{category}/" for category in self.categories)
        if not data.is_dir():
            raise InputError(f"{data}: no such folder; --data names the V* folder that holds {folders}")
        images: dict[str, Path | Embedded] = dict(_find_images(data, self.categories))
        annotations = {
            key: _read_annotation(image.with_suffix(".json"))
            for key, image in images.items()
            if isinstance(image, Path) and image.with_suffix(".json").exists()
        }
        official = _find_lettered(data)
        lines: dict[str, _Line] = {}
        if official is not None and (scoring != "likelihood" or not annotations):
            records = _jsonl_records(official) if official.suffix == ".jsonl" else _table_records(official)
            if not images:
                images = _embedded_images(records, self.categories)
            lines = _read_lines(official, records, images)
            _refuse_missing(images, lines, f"no line in {official}")
        else:
            _refuse_missing(images, annotations, "no NAME.json beside it; the V* release has one for each image")
        if not images:
            raise InputError(f"{data}: no question; expected NAME.jpg with NAME.json in {folders}")
        return [_sample(key, image, annotations.get(key), lines.get(key), scoring) for key, image in images.items()]

    def grade(self, sample: Sample, prediction: Mapping[str, Any]) -> Grade:
        """Right if the text is the right option or its letter.

        A prediction that lists its own ``options`` (as this project's do) is read with their letters; any other with
        those of ``test_questions.jsonl`` or, without that file, A for the first option of ``NAME.json``.
        """
        answers: Answers = sample.reference
        lettered = answers.lettered
        right = {lettered[answers.correct], *answers.sentences[:1]}
        shown = prediction.get("options")
        if shown is not None and set(shown) in (set(lettered), set(answers.sentences)):
            lettered = tuple(shown)
        chosen = parse_answer(prediction["text"], lettered, (*answers.lettered, *answers.sentences))
        return Grade(correct=chosen in right, parseable=chosen is not None)


def parse_answer(text: str, lettered: Sequence[str], others: Sequence[str] = ()) -> str | None:
    """The option that an answer names, or None if it names none or more than one.

    An answer is an option word for word; else a letter, alone or set off (``B``, ``(b)``, ``B. cotton``, ``B cotton``,
    ``The answer is B``); else an option but for case and the full stop.

    Args:
        text: the model's answer.
        lettered: options by letter, A first.
        others: more wordings of the options, which have no letter.
    """
    text = text.strip()
    options = (*lettered, *others)
    if text in options:
        return text
    by_letter = dict(zip(_LETTERS, lettered, strict=False))
    if alone := re.fullmatch(r"\(?([A-Za-z])\)?[.:,]?", text):
        return by_letter.get(alone[1].upper())
    if (leading := re.fullmatch(r"([A-Z]) (.+)", text)) and _plain(leading[2]) == _plain(by_letter.get(leading[1], "")):
        return by_letter[leading[1]]
    named = {letter for found in _NAMED_LETTER.findall(text) for letter in found if letter in by_letter}
    if len(named) == 1:
        return by_letter[named.pop()]
    if named:
        return None
    return next((option for option in options if _plain(option) == _plain(text)), None)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".")


@dataclass(frozen=True)
class _Annotation:
    """A NAME.json."""

    question: str
    options: tuple[str, ...]


@dataclass(frozen=True)
class _Line:
    """A line of test_questions.jsonl; ``text`` is the whole prompt, ``question`` what stands before the options."""

    id: str
    text: str
    question: str
    options: tuple[str, ...]
    correct: int


def _sample(
    key: str, image: Path | Embedded, annotation: _Annotation | None, line: _Line | None, scoring: Scoring | None
) -> Sample:
    sentences = annotation.options if annotation else ()
    if line is not None:
        answers = Answers(line.options, line.correct, sentences)
    else:
        order = list(range(len(sentences)))
        if scoring == "generate":
            random.Random(f"vstar {key}").shuffle(order)
        answers = Answers(tuple(sentences[i] for i in order), order.index(0), sentences)
    if scoring != "generate":
        asked = annotation or line
        assert asked is not None  # load() refuses images that have neither
        prompt, options = asked.question, sentences or answers.lettered
    elif line is not None:
        prompt, options = line.text, answers.lettered
    else:
        assert annotation is not None
        choices = (f"({letter}) {option}" for letter, option in zip(_LETTERS, answers.lettered, strict=False))
        prompt, options = "\n".join((annotation.question, *choices, LETTER_SENTENCE)), answers.lettered
    category = key.split("/")[0]
    aliases = (f"{category}/{image.name}", image.name, image.stem) if isinstance(image, Path) else ()
    return Sample(
        id=key,
        category=category,
        images=(image,),
        prompt=prompt,
        options=options,
        reference=answers,
        aliases=(line.id, *aliases) if line else aliases,
    )


def _find_images(data: Path, categories: Mapping[str, str]) -> dict[str, Path]:
    """``category/NAME`` -> image file, sorted; checks that no image is doubled and no annotation alone."""
    readable = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    images: dict[str, Path] = {}
    for category in categories:
        folder = data / category
        files = sorted(path for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []
        for path in files:
            if path.suffix.lower() in readable:
                key = f"{category}/{path.stem}"
                if key in images:
                    raise InputError(f"{path}: same name as {images[key].name}; one image a question, remove one")
                images[key] = path
        for path in files:
            if path.suffix.lower() == ".json" and f"{category}/{path.stem}" not in images:
                raise InputError(f"{path}: no image {path.stem}.jpg (or of another format) beside it")
    return images


def _find_lettered(data: Path) -> Path | None:
    """The file of the questions with lettered options, if there is one."""
    tables = sorted(path for pattern in _TABLES for path in data.glob(pattern))
    if (data / "test_questions.jsonl").exists():
        return data / "test_questions.jsonl"
    if len(tables) > 1:
        raise InputError(f"{data}: several Parquet files, {tables[0].name} and {tables[1].name}; leave one")
    return tables[0] if tables else None


def _jsonl_records(path: Path) -> list[tuple[str, dict[str, Any]]]:
    lines = enumerate(_read(path).splitlines(), start=1)
    places = [(f"{path}, line {number}", raw) for number, raw in lines if raw.strip()]
    return [(where, _parse_object(raw, where)) for where, raw in places]


def _table_records(path: Path) -> list[tuple[str, dict[str, Any]]]:
    rows = read_rows(path, ("question_id", "category", "text", "label"), ("image",))
    return [(f"{path}, row {number}", row) for number, row in enumerate(rows, start=1)]


def _embedded_images(
    records: Sequence[tuple[str, dict[str, Any]]], categories: Container[str]
) -> dict[str, Path | Embedded]:
    """The images inside the records, each then named as a file in its category's folder would be."""
    images: dict[str, Path | Embedded] = {}
    for where, record in records:
        image, category = record["image"], record["category"]
        if not isinstance(image, Embedded):
            raise InputError(f"{where}: names the image {image!r}, but the folders of images are not there")
        if category not in categories:
            raise InputError(f"{where}: 'category' is {category!r}, not one of V*'s")
        record["image"] = f"{category}/{record['question_id']}"
        images[record["image"]] = image
    return images


def _refuse_missing(images: Mapping[str, Path | Embedded], found: Container[str], lacks: str) -> None:
    missing = [image for key, image in images.items() if key not in found]
    if missing:
        first = missing[0] if isinstance(missing[0], Path) else missing[0].name
        raise InputError(f"{first}: {lacks} (so for {len(missing)} of {len(images)} images)")


def _read_annotation(path: Path) -> _Annotation:
    record = _parse_object(_read(path), str(path))
    question = prompt_of(record, "question", str(path))
    options = record.get("options")
    if not isinstance(options, list) or not all(isinstance(option, str) and option.strip() for option in options):
        raise InputError(f"{path}: 'options' must be a list of texts, the first of them correct")
    _check_options(options, str(path))
    return _Annotation(question, tuple(options))


def _read_lines(
    path: Path, records: Sequence[tuple[str, dict[str, Any]]], images: Mapping[str, Path | Embedded]
) -> dict[str, _Line]:
    lines: dict[str, _Line] = {}
    ids: set[str] = set()
    for where, record in records:
        key = str(Path(prompt_of(record, "image", where)).with_suffix(""))
        if key not in images:
            raise InputError(f"{where}: no image {record['image']} in {path.parent}")
        if key in lines:
            raise InputError(f"{where}: second question about {record['image']}")
        identity = record.get("question_id")
        if isinstance(identity, bool) or not isinstance(identity, int | str) or str(identity) in ids:
            raise InputError(f"{where}: 'question_id' must be a text or a whole number, and no other line's")
        ids.add(str(identity))
        text = prompt_of(record, "text", where)
        found = list(re.finditer(r"^\(([A-Z])\)[ \t]*(\S.*?)[ \t\r]*$", text, re.MULTILINE))
        options = [match[2] for match in found]
        if "".join(match[1] for match in found) != _LETTERS[: len(found)]:
            raise InputError(f"{where}: the options in 'text' must be lines '(A) …', '(B) …' and so on")
        _check_options(options, where)
        label = record.get("label")
        if not isinstance(label, str) or len(label) != 1 or label not in _LETTERS[: len(options)]:
            raise InputError(f"{where}: 'label' is {label!r}, not one of the letters {_LETTERS[: len(options)]}")
        lines[key] = _Line(
            id=str(identity),
            text=text if LETTER_SENTENCE in text else f"{text.rstrip()}\n{LETTER_SENTENCE}",
            question=text[: found[0].start()].strip(),
            options=tuple(options),
            correct=_LETTERS.index(label),
        )
    return lines


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def _parse_object(raw: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(raw)
    except ValueError as error:  # also a text that is not UTF-8
        raise InputError(f"{where}: not valid JSON ({error})") from None
    if not isinstance(record, dict):
        raise InputError(f"{where}: must be a JSON object")
    return record


def _check_options(options: Sequence[str], where: str) -> None:
    if not 2 <= len(options) <= len(_LETTERS):
        raise InputError(f"{where}: {len(options)} option(s); a question to choose from has 2 to {len(_LETTERS)}")
    if len(set(options)) < len(options):
        raise InputError(f"{where}: two options are the same text")
