"""V*Bench (Wu & Xie 2023): 191 questions about small things in large photos.

Layout of the official release (``craigwu/vstar_bench`` on the hub)::

    direct_attributes/NAME.jpg + NAME.json     115 questions, attribute of an object
    relative_position/NAME.jpg + NAME.json      76 questions, spatial relation of two
    test_questions.jsonl                       the same questions with lettered options
    default/test/0000.parquet                  what the hub makes of that file; other copies have the images inside

``NAME.json`` has ``question``, ``options`` (sentences, the first is correct), ``target_object`` and ``bbox``; a line of
``test_questions.jsonl`` has ``question_id``, ``image``, ``category``, ``text`` (question, lettered options and the
sentence that asks for a letter) and ``label``. VLMEvalKit's ``VStarBench.tsv`` stands for the latter, images inside.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from llava_s2.data.image_decoding import Embedded
from llava_s2.errors import InputError
from llava_s2.eval.benchmark import Benchmark, Grade, HubFiles, Sample, Scoring
from llava_s2.eval.choice import split_options
from llava_s2.eval.letters import RULE, read_option
from llava_s2.eval.llava_prompts import LETTER_SENTENCE, NEW_TOKENS
from llava_s2.eval.schema import LETTERS, Record, unique
from llava_s2.eval.tables import read_records, read_value

_TABLES = (
    "test_questions.jsonl",
    "VStarBench.tsv",
    "*.parquet",
    "data/*.parquet",
    "test/*.parquet",
    "default/test/*.parquet",
)


_NO_ANNOTATION = "no NAME.json beside it; the V* release has one for each image"


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


@dataclass(frozen=True)
class _Question:
    """A question of either file: its words, its options, and the whole prompt where these have letters."""

    question: str
    options: tuple[str, ...]
    correct: int = 0
    id: str = ""
    prompt: str = ""
    boxes: tuple[tuple[float, ...], ...] = ()


class VStar(Benchmark):
    """V*, by likelihood (the protocol of the published numbers) or by letter."""

    name: ClassVar[str] = "vstar"
    folders: ClassVar[tuple[str, ...]] = ("vstar_bench",)
    hub: ClassVar[Mapping[str, HubFiles]] = {"": HubFiles("craigwu/vstar_bench", ("*",))}
    protocols: ClassVar[Mapping[Scoring, str]] = {
        "likelihood": "V* likelihood: the option with the smallest mean cross-entropy as the reply",
        "generate": f"V* letter: greedy decoding of LLaVA-1.5's letter prompt, {RULE}",
    }
    categories: ClassVar[Mapping[str, str]] = {"direct_attributes": "attribute", "relative_position": "spatial"}
    max_new_tokens: ClassVar[int] = NEW_TOKENS
    variants: ClassVar[Mapping[str, str]] = {
        "sentences": "likelihood over the sentences of NAME.json, as published",
        "words": "likelihood over the words of the lettered options, which is another task",
    }

    def protocol(self, scoring: Scoring) -> str:
        """Likelihood's has two names: over sentences or over words the numbers are not comparable."""
        over = f", {self.variants[self.variant].removeprefix('likelihood ')}" if self.variant else ""
        return self.protocols[scoring] + over

    def load(self, data: Path, scoring: Scoring | None) -> list[Sample]:
        """Reads the folder; a question's id is ``category/NAME``.

        Letters are those of ``test_questions.jsonl`` where that file exists. Without it ``generate`` shuffles the
        options, seeded with the question's id, so that A is not always right. A table stands for
        ``test_questions.jsonl``, and with its images inside for the folders too.
        """
        folders = " and ".join(f"{category}/" for category in self.categories)
        if not data.is_dir():
            raise InputError(f"{data}: no such folder; --data names the V* folder that holds {folders}")
        if self.variant is not None and scoring == "generate":
            raise InputError("vstar's variants are of --scoring likelihood; leave out --variant")
        images: dict[str, Path | Embedded] = dict(_find_images(data, self.categories))
        files = {key: image.with_suffix(".json") for key, image in images.items() if isinstance(image, Path)}
        sentences = {key: _read_annotation(file) for key, file in files.items() if file.exists()}
        table = _find_table(data)
        lines: dict[str, _Question] = {}
        if table is not None and (scoring != "likelihood" or self.variant == "words" or not sentences):
            records = read_records(table, images=("image",))
            images = images or _embedded_images(records, self.categories)
            lines = _read_lines(table, records, images)
        if not images:
            raise InputError(f"{data}: no question; expected NAME.jpg with NAME.json in {folders}")
        if scoring == "likelihood":
            self.variant = self.variant or ("sentences" if sentences else "words")
        asked, lacks = (lines, f"no line in {table}") if lines else (sentences, _NO_ANNOTATION)
        if missing := [image for key, image in images.items() if key not in asked]:
            first = missing[0] if isinstance(missing[0], Path) else missing[0].name
            raise InputError(f"{first}: {lacks} (so for {len(missing)} of {len(images)} images)")
        return [
            _sample(key, image, sentences.get(key), lines.get(key), scoring, self.variant)
            for key, image in images.items()
        ]

    def gold(self, sample: Sample) -> Any:
        """The right wording, in whichever order the options are shown; the label's where it says another one."""
        answers: Answers = sample.reference
        labelled = answers.lettered[answers.correct]
        if not answers.sentences or read_option(answers.sentences[0], answers.lettered) not in (None, labelled):
            return labelled
        return answers.sentences[0]

    def grade(self, sample: Sample, prediction: Mapping[str, Any]) -> Grade:
        """Right if the text is the right option or its letter.

        A prediction that lists its own ``options`` (as this project's do) is read with their letters; any other with
        those of ``test_questions.jsonl`` or, without that file, A for the first option of ``NAME.json``.
        """
        answers: Answers = sample.reference
        lettered = answers.lettered
        right = {lettered[answers.correct], *answers.sentences[:1]}
        shown = prediction.get("options")
        if isinstance(shown, list) and set(shown) in (set(lettered), set(answers.sentences)):
            lettered = tuple(shown)
        chosen = read_option(prediction["text"], lettered, (*answers.lettered, *answers.sentences))
        return Grade(correct=chosen in right, parseable=chosen is not None)


def _sample(
    key: str,
    image: Path | Embedded,
    sentences: _Question | None,
    line: _Question | None,
    scoring: Scoring | None,
    variant: str | None,
) -> Sample:
    told = sentences.options if sentences else ()
    if line is not None:
        answers = Answers(line.options, line.correct, told)
    else:
        order = list(range(len(told)))
        if scoring == "generate":
            random.Random(f"vstar {key}").shuffle(order)
        answers = Answers(tuple(told[i] for i in order), order.index(0), told)
    asked = sentences if sentences and variant != "words" else line
    assert asked is not None  # load() refuses images that have neither
    prompt, options = asked.question, asked.options
    if scoring == "generate":
        choices = (f"({letter}) {option}" for letter, option in zip(LETTERS, answers.lettered, strict=False))
        prompt = line.prompt if line else "\n".join((asked.question, *choices, LETTER_SENTENCE))
        options = answers.lettered
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
        boxes=sentences.boxes if sentences else (),
    )


def _find_images(data: Path, categories: Mapping[str, str]) -> dict[str, Path]:
    """``category/NAME`` -> image file, sorted; of an annotation alone, the file that should be there."""
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
            if path.suffix.lower() == ".json":
                images.setdefault(f"{category}/{path.stem}", path.with_suffix(".jpg"))
    # In an order that stays when a missing image comes.
    return dict(sorted(images.items(), key=lambda item: ([*categories].index(item[1].parent.name), item[1].name)))


def _find_table(data: Path) -> Path | None:
    """The file of the questions with lettered options, if there is one."""
    for pattern in _TABLES:
        tables = sorted(data.glob(pattern))
        if len(tables) > 1:
            raise InputError(f"{data}: several Parquet files, {tables[0].name} and {tables[1].name}; leave one")
        if tables:
            return tables[0]
    return None


def _embedded_images(records: Sequence[Record], categories: Mapping[str, str]) -> dict[str, Path | Embedded]:
    """The images inside the records, each then named as a file in its category's folder would be."""
    images: dict[str, Path | Embedded] = {}
    for record in records:
        image = record.first("image")
        if not isinstance(image, Embedded):
            raise record.fault(f"names the image {image!r}, but the folders of images are not there")
        record["image"] = f"{record.one_of('category', tuple(categories))}/{record.identity('question_id', 'index')}"
        images[record["image"]] = image
    return images


def _read_annotation(path: Path) -> _Question:
    value = read_value(path)
    if not isinstance(value, dict):
        raise InputError(f"{path}: must be a JSON object")
    record = Record(value, str(path))
    options = record.texts("options")
    given = record.get("bbox")
    boxes = [box for box in given if _is_box(box)] if isinstance(given, list) else []  # for the viewer alone
    return _Question(
        record.prompt("question"), _checked(options, record), boxes=tuple(tuple(map(float, box)) for box in boxes)
    )


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(isinstance(side, int | float) for side in value)


def _read_lines(table: Path, records: Sequence[Record], images: Mapping[str, Path | Embedded]) -> dict[str, _Question]:
    lines: dict[str, _Question] = {}
    for record in records:
        name = record["image"] if isinstance(record["image"], str) else f"{record['category']}/{record.get('index')}"
        key = str(Path(name).with_suffix(""))
        if key not in images:
            raise record.fault(f"no image {name} in {table.parent}")
        if key in lines:
            raise record.fault(f"second question about {name}")
        if "A" in record:
            question, options = record.prompt("question"), record.options()
            listed = (f"({letter}) {option}" for letter, option in zip(LETTERS, options, strict=False))
            text = "\n".join((question, *listed))
        else:
            text = record.prompt("text")
            question, options = split_options(text.replace(LETTER_SENTENCE, ""))
        if len(options) < 2:
            raise record.fault("the options in 'text' must be '(A) …', '(B) …' and so on, two or more")
        lines[key] = _Question(
            id=record.identity("question_id", "index"),
            prompt=text if LETTER_SENTENCE in text else f"{text.rstrip()}\n{LETTER_SENTENCE}",
            question=question,
            options=_checked(options, record),
            correct=LETTERS.index(record.letter("label" if "label" in record else "answer", len(options))),
        )
    unique([line.id for line in lines.values()], table)
    return lines


def _checked(options: Sequence[str], record: Record) -> tuple[str, ...]:
    if not 2 <= len(options) <= len(LETTERS) or not all(option.strip() for option in options):
        raise record.fault(f"{len(options)} 'options'; a question to choose from has 2 to {len(LETTERS)}, none blank")
    if len(set(options)) < len(options):
        raise record.fault("two options are the same text")
    return tuple(options)
