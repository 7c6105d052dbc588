"""SEED-Bench (Li et al. 2023): multiple-choice questions about images and about a video's middle frame.

Layout of the official release (``AILab-CVC/SEED-Bench`` on the hub), with the frames as LLaVA cuts them::

    SEED-Bench.json      {"questions": [{"question_id", "question_type_id", "data_type", "data_id", "question",
                         "choice_a" … "choice_d", "answer"}, …], "question_type": {name: id, …}}
    SEED-Bench-image/DATA_ID                                      for "data_type": "image"
    SEED-Bench-video-image/QUESTION_TYPE_ID_QUESTION_ID.png       for "video"
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from llava_s2.errors import InputError
from llava_s2.eval.benchmark import Benchmark, Grade, Sample, Scoring
from llava_s2.eval.records import prompt_of, read_objects, text_of, unique
from llava_s2.eval.vstar import LETTER_SENTENCE
from llava_s2.weight_files import read_json

_LETTERS = "ABCD"
_FOLDERS = {"image": "SEED-Bench-image", "video": "SEED-Bench-video-image"}


class SEEDBench(Benchmark):
    """SEED-Bench by LLaVA-1.5's letter, or by the likelihood of the choices as the paper ranks them."""

    name: ClassVar[str] = "seedbench"
    protocols: ClassVar[Mapping[Scoring, str]] = {
        "generate": "SEED-Bench letter: greedy decoding of LLaVA-1.5's letter prompt, right if it is the letter alone",
        "likelihood": "SEED-Bench likelihood: the choice with the smallest mean cross-entropy as the reply",
    }
    categories: ClassVar[Mapping[str, str]] = {}
    max_new_tokens: ClassVar[int] = 16
    variants: ClassVar[Mapping[str, str]] = {"all": "images and videos", "image": "images alone"}

    def load(self, data: Path, scoring: Scoring | None) -> list[Sample]:
        """Reads the questions; a category is a dimension, and counts in ``image`` or ``video`` too."""
        path = data / "SEED-Bench.json"
        records = read_objects(path, "questions")
        names = read_json(path).get("question_type")
        if not isinstance(names, dict):
            raise InputError(f"{path}: 'question_type' must be an object of name: id")
        self.variant = self.variant or "all"
        dimensions = {identity: name for name, identity in names.items()}
        samples = []
        for number, record in enumerate(records, start=1):
            where = f"{path}, question {number}"
            kind, dimension, answer = (record.get(key) for key in ("data_type", "question_type_id", "answer"))
            if kind not in _FOLDERS:
                raise InputError(f"{where}: 'data_type' is {kind!r}, not image or video")
            if dimension not in dimensions:
                raise InputError(f"{where}: 'question_type_id' {dimension!r} has no name in 'question_type'")
            if not isinstance(answer, str) or len(answer) != 1 or answer not in _LETTERS:
                raise InputError(f"{where}: 'answer' is {answer!r}, not one of the letters {_LETTERS}")
            identity = record.get("question_id")
            if isinstance(identity, bool) or not isinstance(identity, int | str):
                raise InputError(f"{where}: 'question_id' must be a text or a whole number")
            choices = tuple(prompt_of(record, f"choice_{letter.lower()}", where) for letter in _LETTERS)
            question = prompt_of(record, "question", where)
            listed = (f"{letter}. {choice}" for letter, choice in zip(_LETTERS, choices, strict=True))
            lettered = "\n".join((question, *listed, LETTER_SENTENCE))
            file = text_of(record, "data_id", where) if kind == "image" else f"{dimension}_{identity}.png"
            if kind == "image" or self.variant == "all":
                samples.append(
                    Sample(
                        id=str(identity),
                        category=dimensions[dimension],
                        images=(data / _FOLDERS[kind] / file,),
                        prompt=lettered if scoring == "generate" else question,
                        options=choices,
                        reference=answer,
                        also=(kind,),
                    )
                )
        unique([sample.id for sample in samples], path)
        return samples

    def grade(self, sample: Sample, prediction: Mapping[str, Any]) -> Grade:
        """Right if the text is the letter itself, as in LLaVA's script; of a likelihood's prediction, the choice."""
        text = prediction["text"]
        if "losses" in prediction and text in sample.options:
            text = _LETTERS[sample.options.index(text)]
        return Grade(text == sample.reference, parseable=len(text) == 1 and text in _LETTERS)
