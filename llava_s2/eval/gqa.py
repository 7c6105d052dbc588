"""GQA (Hudson & Manning 2019): compositional questions about photos; its balanced test-dev split.

Layout of the official release, in the folder or in its ``data/`` as LLaVA has it::

    testdev_balanced_questions.json        {id: {"question", "imageId", "answer", "types": {"structural", …}}, …}
    images/n161313.jpg

or lmms-lab's Parquet (``testdev_balanced_instructions/testdev-*.parquet``, with the images in
``testdev_balanced_images/testdev-*.parquet``), or VLMEvalKit's ``GQA_TestDev_Balanced.tsv``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from llava_s2.errors import InputError
from llava_s2.eval.benchmark import Benchmark, Grade, HubFiles, Sample, Scoring
from llava_s2.eval.llava_prompts import NEW_TOKENS, SHORT_ANSWER
from llava_s2.eval.schema import Record, unique
from llava_s2.eval.tables import find_file, read_records, read_value

_JSON = "testdev_balanced_questions.json"
_FILES = (_JSON, f"questions1.2/{_JSON}", "testdev_balanced_instructions/testdev-*.parquet", "GQA_TestDev_Balanced.tsv")


class GQA(Benchmark):
    """GQA with LLaVA-1.5's prompt and its way from a model's words to a submitted answer."""

    name: ClassVar[str] = "gqa"
    hub: ClassVar[Mapping[str, HubFiles]] = {"": HubFiles("lmms-lab/GQA", ("testdev_balanced_*/*",))}
    protocols: ClassVar[Mapping[Scoring, str]] = {
        "generate": "GQA: greedy decoding of LLaVA-1.5's short-answer prompt, exact match but for case and full stop"
    }
    categories: ClassVar[Mapping[str, str]] = {}
    max_new_tokens: ClassVar[int] = NEW_TOKENS

    def load(self, data: Path, scoring: Scoring | None) -> list[Sample]:
        """Reads the questions; a category is a structural type."""
        paths = find_file(data, _FILES)
        if paths[0].suffix == ".json":
            value = read_value(paths[0])
            if not isinstance(value, dict) or not all(isinstance(fields, dict) for fields in value.values()):
                raise InputError(f"{paths[0]}: must be an object of id: question")
            records = [Record({"id": key, **fields}, f"{paths[0]}, {key}") for key, fields in value.items()]
        else:
            records = [record for path in paths for record in read_records(path, images=("image",))]
        embedded = _embedded_images(paths[0], records) if scoring is not None else {}
        samples = [_sample(record, paths[0].parent, embedded) for record in records]
        unique([sample.id for sample in samples], paths[0])
        return samples

    def answer(self, text: str) -> str:
        """As LLaVA submits it."""
        return text.rstrip(".").lower()

    def grade(self, sample: Sample, prediction: Mapping[str, Any]) -> Grade:
        """Right if the text is the answer, as in GQA's ``eval.py`` after LLaVA's conversion."""
        return Grade(self.answer(prediction["text"]) == sample.reference)


def _embedded_images(path: Path, records: list[Record]) -> dict[str, Any]:
    """Of lmms-lab's copy, where images are in tables of their own: image id -> image."""
    folder = path.parent.parent / "testdev_balanced_images"
    if path.suffix != ".parquet" or records[0].images("image"):
        return {}
    tables = find_file(folder, ("testdev-*.parquet",))
    return {r.identity("id"): r.first("image") for table in tables for r in read_records(table, images=("image",))}


def _sample(record: Record, folder: Path, embedded: Mapping[str, Any]) -> Sample:
    types = record.get("types")
    shown: tuple[Any, ...] = record.images("image")
    if not shown:
        name = record.identity("imageId", "image")
        images = folder if (folder / "images").is_dir() else folder.parent
        shown = (embedded[name],) if name in embedded else (images / "images" / f"{name.removesuffix('.jpg')}.jpg",)
    return Sample(
        id=record.identity("id", "question_id", "index"),
        category=str(types["structural"]) if isinstance(types, dict) and types.get("structural") else "all",
        images=shown,
        prompt=f"{record.prompt('question')}\n{SHORT_ANSWER}",
        options=(),
        reference=record.text("answer"),
    )
