"""SEED-Bench (Li et al. 2023): multiple-choice questions about images and about a video's middle frame.

Layout of the official release (``AILab-CVC/SEED-Bench`` on the hub), with the frames as LLaVA cuts them::

    SEED-Bench.json      {"questions": [{"question_id", "question_type_id", "data_type", "data_id", "question",
                         "choice_a" … "choice_d", "answer"}, …], "question_type": {name: id, …}}
    SEED-Bench-image/DATA_ID                                      for "data_type": "image"
    SEED-Bench-video-image/QUESTION_TYPE_ID_QUESTION_ID.png       for "video"

or VLMEvalKit's ``SEEDBench_IMG.tsv``, whose questions are about images alone, or lmms-lab's Parquet
(``test-*.parquet``), where a video is a list of frames.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from llava_s2.errors import InputError
from llava_s2.eval.benchmark import Benchmark, Grade, HubFiles, Sample, Scoring
from llava_s2.eval.llava_prompts import NEW_TOKENS, lettered
from llava_s2.eval.schema import Record, unique
from llava_s2.eval.tables import find_file, read_records, read_value

_LETTERS = "ABCD"
_FOLDERS = {"image": "SEED-Bench-image", "video": "SEED-Bench-video-image"}


class SEEDBench(Benchmark):
    """SEED-Bench by LLaVA-1.5's letter, or by the likelihood of the choices as the paper ranks them."""

    name: ClassVar[str] = "seedbench"
    hub: ClassVar[Mapping[str, HubFiles]] = {
        "image": HubFiles("AILab-CVC/SEED-Bench", ("SEED-Bench.json", "SEED-Bench-image.zip|SEED-Bench-image/*")),
        "all": HubFiles("lmms-lab/SEED-Bench", ("data/test-*",)),  # the release has videos, and not of all tasks
    }
    protocols: ClassVar[Mapping[Scoring, str]] = {
        "generate": "SEED-Bench letter: greedy decoding of LLaVA-1.5's letter prompt, right if it is the letter alone",
        "likelihood": "SEED-Bench likelihood: the choice with the smallest mean cross-entropy as the reply",
    }
    categories: ClassVar[Mapping[str, str]] = {}
    max_new_tokens: ClassVar[int] = NEW_TOKENS
    variants: ClassVar[Mapping[str, str]] = {"all": "images and videos", "image": "images alone"}

    def load(self, data: Path, scoring: Scoring | None) -> list[Sample]:
        """Reads the questions; a category is a dimension, and counts in ``image`` or ``video`` too.

        Without a variant named, a folder that has no frames of videos is asked about its images alone.
        """
        frames = (data / _FOLDERS["video"]).is_dir()
        files = ["SEED-Bench.json", "SEEDBench_IMG.tsv", "test-*.parquet"]
        if self.variant == "all":  # Parquet has the videos' frames inside, and goes before a release without them
            files = files[::2] if frames else files[::-2]
        path, *others = find_file(data, files)
        if path.suffix == ".parquet":
            records = [record for part in (path, *others) for record in read_records(part, images=("image",))]
            found = dict.fromkeys(record.number("question_type_id") for record in records)
            numbers = {number: f"dimension {number}" for number in found}
            made = [_sample(record, data, numbers, scoring) for record in records]
            self.variant = self.variant or "all"
            samples = [sample for sample in made if self.variant == "all" or sample.also == ("image",)]
        elif path.suffix == ".tsv":
            self.variant = "image"
            samples = [self._of_table(record, scoring) for record in read_records(path, images=("image",))]
        else:
            if self.variant is None:
                images_alone = scoring is not None and not frames and (data / _FOLDERS["image"]).is_dir()
                self.variant = "image" if images_alone else "all"
            records = read_records(path, "questions")
            names = read_value(path).get("question_type")
            if not isinstance(names, dict) or not all(isinstance(number, int) for number in names.values()):
                raise InputError(f"{path}: 'question_type' must be an object of name: whole number")
            dimensions = {identity: name for name, identity in names.items()}
            made = [_sample(record, data, dimensions, scoring) for record in records]
            samples = [sample for sample in made if self.variant == "all" or sample.also == ("image",)]
        unique([sample.id for sample in samples], path)
        return samples

    def _of_table(self, record: Record, scoring: Scoring | None) -> Sample:
        options = record.options()
        return Sample(
            id=record.identity("index"),
            category=record.text("category"),
            images=record.images("image"),
            prompt=_prompt(record.prompt("question"), options, scoring),
            options=tuple(options),
            reference=record.letter("answer", len(options)),
            also=("image",),
        )

    def grade(self, sample: Sample, prediction: Mapping[str, Any]) -> Grade:
        """Right if the text is the letter itself, as in LLaVA's script; of a likelihood's prediction, the choice."""
        text = prediction["text"]
        if "losses" in prediction and text in sample.options:
            text = _LETTERS[sample.options.index(text)]
        return Grade(text == sample.reference, parseable=len(text) == 1 and text in _LETTERS)


def _prompt(question: str, options: list[str], scoring: Scoring | None) -> str:
    return question if scoring == "likelihood" else lettered(question, options)


def _sample(record: Record, data: Path, dimensions: Mapping[Any, str], scoring: Scoring | None) -> Sample:
    kind = record.one_of("data_type", tuple(_FOLDERS))
    dimension, identity = record.number("question_type_id"), record.identity("question_id")
    if dimension not in dimensions:
        raise record.fault(f"'question_type_id' {dimension!r} has no name in 'question_type'")
    options = [record.prompt(f"choice_{letter.lower()}") for letter in _LETTERS]
    shown: tuple[Any, ...] = record.images("image")
    if not shown:
        shown = (
            data / _FOLDERS[kind] / (record.text("data_id") if kind == "image" else f"{dimension}_{identity}.png"),
        )
    return Sample(
        id=identity,
        category=dimensions[dimension],
        images=shown if kind == "image" else (shown[len(shown) // 2],),
        prompt=_prompt(record.prompt("question"), options, scoring),
        options=tuple(options),
        reference=record.letter("answer", len(_LETTERS)),
        also=(kind,),
    )
