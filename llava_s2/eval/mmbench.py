"""MMBench (Liu et al. 2024): multiple-choice questions by ability, each asked once for every rotation of its options.

Layout of the official release, one or more of::

    mmbench_dev_20230712.tsv, MMBench_DEV_EN.tsv, mmbench_dev_cn_20231003.tsv, MMBench_TEST_EN.tsv, …

with columns ``index``, ``hint``, ``question``, ``A`` to ``D``, ``answer`` (dev), ``category``, ``l2-category`` and
``image`` (base64, or the index of the row that has it). The rotations of question i are rows i + 1000000 k.
"""

import base64
import binascii
import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from llava_s2.errors import InputError
from llava_s2.eval.benchmark import Benchmark, Embedded, Grade, Sample, Scoring
from llava_s2.eval.records import prompt_of, refuse_missing, unique
from llava_s2.eval.vstar import LETTER_SENTENCE

_CHINESE_LETTER_SENTENCE = "请直接回答选项字母。"
_LETTERS = "ABCD"
_ROTATION = 1_000_000
# A cell this short is no image: it names the row that has it.
_REFERENCE = 64
_PRIVATE = ("hint", "category", "source", "image", "comment", "l2-category")
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)


class MMBench(Benchmark):
    """MMBench with LLaVA-1.5's prompt, CircularEval, and the letters of VLMEvalKit's exact matching."""

    name: ClassVar[str] = "mmbench"
    protocols: ClassVar[Mapping[Scoring, str]] = {
        "generate": "MMBench: greedy decoding of LLaVA-1.5's letter prompt, VLMEvalKit's exact matching, CircularEval"
    }
    categories: ClassVar[Mapping[str, str]] = {}
    max_new_tokens: ClassVar[int] = 32
    variants: ClassVar[Mapping[str, str]] = {
        "dev-en": "English, scored here",
        "dev-cn": "Chinese, scored here",
        "test-en": "English, for the server",
        "test-cn": "Chinese, for the server",
    }

    def load(self, data: Path, scoring: Scoring | None) -> list[Sample]:
        """Reads the variant's TSV; a question's category is its ability at level 2, and it counts at level 3 too."""
        path = self._find(data)
        rows = _read_rows(path)
        images = {row["index"]: row["image"] for row in rows}
        unique([row["index"] for row in rows], path)
        request = LETTER_SENTENCE if self.variant and self.variant.endswith("en") else _CHINESE_LETTER_SENTENCE
        lacking = [n for n, row in enumerate(rows, start=1) if not _image(row, images)]
        refuse_missing([f"{path}, row {n}: no image, neither its own nor another row's" for n in lacking], len(rows))
        samples = []
        for number, row in enumerate(rows, start=1):
            where = f"{path}, row {number}"
            if not row["index"].isdecimal():
                raise InputError(f"{where}: 'index' {row['index']!r} is not a whole number")
            options = _options(row)
            if not options:
                raise InputError(f"{where}: no option in column A")
            answer = row.get("answer") or None
            if answer not in (None, *_LETTERS):
                raise InputError(f"{where}: 'answer' is {answer!r}, not one of the letters {_LETTERS}")
            if answer is None and self.variant in ("dev-en", "dev-cn"):
                raise InputError(f"{where}: no 'answer'; is {path.name} the test split?")
            hint = "" if _absent(row.get("hint", "")) else row["hint"] + "\n"
            listed = (f"{letter}. {option}" for letter, option in zip(_LETTERS, options, strict=False))
            samples.append(
                Sample(
                    id=row["index"],
                    category=row.get("l2-category") or row.get("category") or "all",
                    images=(Embedded(f"{where}, image", _decoder(_image(row, images), where)),),
                    prompt="\n".join((hint + prompt_of(row, "question", where), *listed, request)),
                    options=options,
                    reference={"answer": answer, "row": {k: v for k, v in row.items() if k not in _PRIVATE}},
                    also=(row["category"],) if row.get("l2-category") and row.get("category") else (),
                    group=f"q{int(row['index']) % _ROTATION}",
                )
            )
        return samples

    def grade(self, sample: Sample, prediction: Mapping[str, Any]) -> Grade | None:
        """Right if the text names the right option; the runner takes a question as right if all its rotations are."""
        if sample.reference["answer"] is None:
            return None
        letter = match_letter(prediction["text"], sample.options)
        return Grade(letter == sample.reference["answer"], parseable=letter is not None)

    def write_submission(
        self, samples: Sequence[Sample], predictions: Mapping[str, Mapping[str, Any]], folder: Path
    ) -> Path | None:
        """An Excel file with the rows and a column ``prediction``, as LLaVA submits it."""
        try:
            from openpyxl import Workbook
        except ImportError:
            raise InputError('writing the server\'s file takes openpyxl: pip install "llava-s2[eval]"') from None
        book = Workbook(write_only=True)
        sheet = book.create_sheet()
        columns = list(samples[0].reference["row"])
        place = columns.index("D") + 1 if "D" in columns else len(columns)
        sheet.append([*columns[:place], "prediction", *columns[place:]])
        for sample in samples:
            cells = [_cell(column, value) for column, value in sample.reference["row"].items()]
            sheet.append([*cells[:place], _printable(predictions[sample.id]["text"]), *cells[place:]])
        path = folder / f"mmbench_{self.variant}.xlsx"
        temporary = path.with_name(f".{path.name}")
        book.save(temporary)
        temporary.replace(path)
        return path

    def _find(self, data: Path) -> Path:
        """The variant's file; sets the variant if it was left open."""
        if not data.is_dir():
            raise InputError(f"{data}: no such folder; --data names the folder that holds MMBench's TSV files")
        found: dict[str, list[Path]] = {}
        for path in sorted(data.glob("*.tsv")):
            name = path.stem.lower()
            split = "test" if "_test" in name else "dev"
            found.setdefault(f"{split}-{'cn' if '_cn' in name else 'en'}", []).append(path)
        self.variant = self.variant or next((name for name in self.variants if name in found), None)
        if self.variant is None or self.variant not in found:
            raise InputError(f"{data}: no TSV of MMBench {self.variant or ''}; docs/data.md says where it comes from")
        if len(found[self.variant]) > 1:
            names = ", ".join(path.name for path in found[self.variant])
            raise InputError(f"{data}: several TSV files of {self.variant}: {names}; leave one")
        return found[self.variant][0]


def match_letter(text: str, options: Sequence[str]) -> str | None:
    """The letter that an answer names by VLMEvalKit's exact matching, or None.

    It is the only letter among the words, and one of the last four of them; else the only option whose text occurs, in
    an answer at most twice as long as the options together.
    """
    if "Failed to obtain answer via API" in text:
        return None
    if any(refusal in text for refusal in _REFUSALS):
        return None
    words = text.translate({ord(mark): " " for mark in ".()[],:;!*#{}"}).split()
    named = [letter for letter in _LETTERS[: len(options)] if letter in words]
    if len(named) == 1 and words.index(named[0]) > len(words) - 5:
        return named[0]
    if not named and "Z" in words:
        return None
    if len(text) > 2 * sum(map(len, options)):
        return None
    held = [letter for letter, o in zip(_LETTERS, options, strict=False) if o.lower() in text.lower()]
    return held[0] if len(held) == 1 else None


def _options(row: Mapping[str, str]) -> tuple[str, ...]:
    """The options up to the first that is absent, as LLaVA takes them."""
    options = []
    for letter in _LETTERS:
        if _absent(row.get(letter, "")):
            break
        options.append(row[letter])
    return tuple(options)


def _absent(cell: str) -> bool:
    return cell.lower() in ("", "nan", "none")


def _read_rows(path: Path) -> list[dict[str, str]]:
    limit = csv.field_size_limit(sys.maxsize)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t", restval="")
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as a TSV file ({error})") from None
    finally:
        csv.field_size_limit(limit)
    if missing := {"index", "question", "image", "A", "B"} - set(reader.fieldnames or ()):
        raise InputError(f"{path}: has no column {', '.join(sorted(missing))}")
    if not rows:
        raise InputError(f"{path}: holds no question")
    return rows


def _image(row: Mapping[str, str], images: Mapping[str, str]) -> str:
    """The row's own image, base64, or that of the row which it names; empty if there is none."""
    own = row["image"]
    encoded = own if len(own) > _REFERENCE else images.get(own, "")
    return encoded if len(encoded) > _REFERENCE else ""


def _decoder(encoded: str, where: str) -> Any:
    def read() -> bytes:
        try:
            return base64.b64decode(encoded, validate=True)
        except binascii.Error as error:
            raise InputError(f"{where}: 'image' is not base64 ({error})") from None

    return read


def _cell(column: str, value: str) -> str | int:
    return int(value) if column == "index" else _printable(value)


def _printable(text: str) -> str:
    """Without the control characters that Excel files cannot hold."""
    return "".join(character for character in text if character >= " " or character in "\t\n\r")
