"""MMBench (Liu et al. 2024): multiple-choice questions by ability, each asked once for every rotation of its options.

Layout of the official release or of VLMEvalKit, one or more of::

    mmbench_dev_20230712.tsv, MMBench_DEV_EN.tsv, mmbench_dev_cn_20231003.tsv, MMBench_TEST_EN.tsv, …
    MMBench_DEV_EN_V11.tsv, MMBench_DEV_CN_V11.tsv, …       version 1.1
    en/dev-00000-of-00001.parquet, cn/dev-….parquet, …      lmms-lab's copy

with columns ``index``, ``hint``, ``question``, ``A`` to ``D``, ``answer`` (dev), ``category``, ``l2-category`` and
``image`` (base64, or the index of the row that has it). The rotations of question i are rows i + 1000000 k.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from llava_s2.errors import InputError
from llava_s2.eval.benchmark import Benchmark, Grade, HubFiles, Sample, Scoring
from llava_s2.eval.llava_prompts import CHINESE_LETTER_SENTENCE, LETTER_SENTENCE, MANY_NEW_TOKENS, lettered
from llava_s2.eval.schema import Record, refuse_missing, unique
from llava_s2.eval.tables import find_file, read_records
from llava_s2.eval.vlmevalkit import RULES, read_by_rule
from llava_s2.files import atomic_write

_ROTATION = 1_000_000
_PRIVATE = ("hint", "category", "source", "image", "comment", "l2-category", "L2-category", "split")
_VARIANTS = {
    "dev-en": "English, scored here",
    "dev-cn": "Chinese, scored here",
    "test-en": "English, for the server",
    "test-cn": "Chinese, for the server",
}


class MMBench(Benchmark):
    """MMBench with LLaVA-1.5's prompt, CircularEval, and the letters of VLMEvalKit's exact matching."""

    name: ClassVar[str] = "mmbench"
    hub: ClassVar[Mapping[str, HubFiles]] = {
        f"{split}-{language}": HubFiles("lmms-lab/MMBench", (f"{language}/{split}-*",))
        for split in ("dev", "test")
        for language in ("en", "cn")
    }
    protocols: ClassVar[Mapping[Scoring, str]] = {
        "generate": "MMBench: greedy decoding of LLaVA-1.5's letter prompt, CircularEval"
    }
    rules: ClassVar[Mapping[str, str]] = RULES
    requires: ClassVar[tuple[str, ...]] = ("openpyxl",)
    categories: ClassVar[Mapping[str, str]] = {}
    max_new_tokens: ClassVar[int] = MANY_NEW_TOKENS
    variants: ClassVar[Mapping[str, str]] = _VARIANTS | {
        f"{name}-v11": f"{what}, version 1.1" for name, what in _VARIANTS.items()
    }

    def load(self, data: Path, scoring: Scoring | None) -> list[Sample]:
        """Reads the variant's table; a question's category is its ability at level 2, and it counts at level 3 too."""
        paths = self._find(data)
        records = [record for path in paths for record in read_records(path, images=("image",))]
        unique([record.identity("index") for record in records], paths[0])
        english = "-en" in (self.variant or "")
        if scoring is not None:
            lacking = [
                f"{r.where}: no image, neither its own nor another row's" for r in records if not r.images("image")
            ]
            refuse_missing(lacking, len(records))
        samples = []
        for record in records:
            index, options = record.number("index"), record.options()
            if len(options) < 2:
                raise record.fault("no option in column B" if options else "no option in column A")
            answer = record.letter("answer", len(options)) if record.optional("answer") else None
            if answer is None and (self.variant or "").startswith("dev"):
                raise record.fault("no 'answer'; is this the test split?")
            level_2, level_3 = record.optional("l2-category", "L2-category"), record.optional("category")
            question = "\n".join(filter(None, (record.optional("hint"), record.prompt("question"))))
            samples.append(
                Sample(
                    id=str(index),
                    category=level_2 or level_3 or "all",
                    images=record.images("image"),
                    prompt=lettered(question, options, LETTER_SENTENCE if english else CHINESE_LETTER_SENTENCE),
                    options=tuple(options),
                    reference={"answer": answer, "row": _public(record)},
                    also=(level_3,) if level_2 and level_3 else (),
                    group=f"q{record['g_index'] if record.optional('g_index') else index % _ROTATION}",
                )
            )
        return samples

    def gold(self, sample: Sample) -> Any:
        """The right letter."""
        return sample.reference["answer"]

    def grade(self, sample: Sample, prediction: Mapping[str, Any]) -> Grade | None:
        """Right if the text names the right option; the runner takes a question as right if all its rotations are."""
        if sample.reference["answer"] is None:
            return None
        letter = read_by_rule(prediction["text"], sample.options, self.rule)
        return Grade(letter == sample.reference["answer"], parseable=letter is not None)

    def write_submission(
        self, samples: Sequence[Sample], predictions: Mapping[str, Mapping[str, Any]], folder: Path
    ) -> Path | None:
        """An Excel file with the rows and a column ``prediction``, as LLaVA submits it."""
        from openpyxl import Workbook

        book = Workbook(write_only=True)
        sheet = book.create_sheet()
        columns = list(samples[0].reference["row"])
        place = columns.index("D") + 1 if "D" in columns else len(columns)
        sheet.append([*columns[:place], "prediction", *columns[place:]])
        for sample in samples:
            cells = [_cell(column, value) for column, value in sample.reference["row"].items()]
            sheet.append([*cells[:place], _printable(predictions[sample.id]["text"]), *cells[place:]])
        path = folder / f"mmbench_{self.variant}.xlsx"
        with atomic_write(path) as partial:
            book.save(partial)
        return path

    def _find(self, data: Path) -> list[Path]:
        """The variant's files; sets the variant if it was left open."""
        find_file(data, ("*.tsv", "*/*.parquet", "*.parquet"))
        found: dict[str, list[Path]] = {}
        tables = sorted(data.glob("*.tsv"))
        named = [
            path for path in tables if path.name.lower().startswith("mmbench")
        ]  # VLMEvalKit's folder has all tasks'
        for path in sorted([*(named or tables), *data.glob("*.parquet"), *data.glob("*/*.parquet")]):
            name = f"{path.parent.name if path.suffix == '.parquet' else ''}_{path.stem}".lower()
            split = "test" if "_test" in name else "dev"
            version = "-v11" if "v11" in name else ""
            found.setdefault(f"{split}-{'cn' if 'cn' in name.split('_') else 'en'}{version}", []).append(path)
        self.variant = self.variant or next((name for name in self.variants if name in found), None)
        if self.variant is None or self.variant not in found:
            raise InputError(f"{data}: no table of MMBench {self.variant or ''}; docs/data.md says where it comes from")
        paths = found[self.variant]
        if len(paths) > 1 and any(path.suffix == ".tsv" for path in paths):
            names = ", ".join(path.name for path in paths)
            raise InputError(f"{data}: several TSV files of {self.variant}: {names}; leave one")
        return paths


def _public(record: Record) -> dict[str, str]:
    """What of the row the server's file holds."""
    cells = {name: value for name, value in record.items() if name not in _PRIVATE}
    return {name: "" if value is None else str(value) for name, value in cells.items()}


def _cell(column: str, value: str) -> str | int:
    return int(value) if column == "index" else _printable(value)


def _printable(text: str) -> str:
    """Without the control characters that Excel files cannot hold."""
    return "".join(character for character in text if character >= " " or character in "\t\n\r")
