"""TextVQA (Singh et al. 2019): questions whose answer is written somewhere in the picture.

Layout of the official release (textvqa.org)::

    TextVQA_0.5.1_val.json              {"data": [{"question_id", "image_id", "question", "answers": [ten texts]}, …]}
    train_images/IMAGE_ID.jpg
    TextVQA_Rosetta_OCR_v0.2_val.json   {"data": [{"image_id", "ocr_tokens": […]}, …]}, for the variant ocr
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from llava_s2.errors import InputError
from llava_s2.eval.benchmark import Benchmark, Grade, Sample, Scoring
from llava_s2.eval.records import choose_variant, prompt_of, read_objects, text_of, unique
from llava_s2.eval.vqa_accuracy import SHORT_ANSWER, m4c_accuracy

_QUESTIONS = "TextVQA_0.5.1_val.json"
_OCR = "TextVQA_Rosetta_OCR_v0.2_val.json"
_PEOPLE = 10


class TextVQA(Benchmark):
    """TextVQA's validation questions, with LLaVA-1.5's prompt: the question alone, or with the OCR tokens."""

    name: ClassVar[str] = "textvqa"
    protocols: ClassVar[Mapping[Scoring, str]] = {
        "generate": "TextVQA: greedy decoding of LLaVA-1.5's short-answer prompt, M4C accuracy"
    }
    categories: ClassVar[Mapping[str, str]] = {"val": "validation"}
    max_new_tokens: ClassVar[int] = 32
    variants: ClassVar[Mapping[str, str]] = {
        "plain": "the question alone",
        "ocr": "with the Rosetta OCR tokens, as in LLaVA-1.5's published number",
    }

    def load(self, data: Path, scoring: Scoring | None) -> list[Sample]:
        """Reads the questions and, of ``ocr``, the tokens, which every image must have."""
        self.variant = choose_variant(data, dict.fromkeys(self.variants, _QUESTIONS), self.variant)
        path = data / _QUESTIONS
        tokens = _read_tokens(data / _OCR) if self.variant == "ocr" else {}
        samples = []
        for number, record in enumerate(read_objects(path, "data"), start=1):
            where = f"{path}, record {number}"
            identity, answers = record.get("question_id"), record.get("answers")
            if isinstance(identity, bool) or not isinstance(identity, int | str):
                raise InputError(f"{where}: 'question_id' must be a text or a whole number")
            if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
                raise InputError(f"{where}: 'answers' must be a list of texts; is this the test split?")
            if len(answers) != _PEOPLE:
                raise InputError(f"{where}: {len(answers)} answers; M4C accuracy takes {_PEOPLE}")
            if record.get("set_name", "val") != "val":
                raise InputError(
                    f"{where}: is of the split {record['set_name']!r}, not val; take {_QUESTIONS} as released"
                )
            image, lines = text_of(record, "image_id", where), [prompt_of(record, "question", where)]
            if self.variant == "ocr":
                if image not in tokens:
                    raise InputError(f"{where}: image {image} is not in {_OCR}; are the files of one split?")
                lines.append(f"Reference OCR token: {', '.join(tokens[image])}")
            samples.append(
                Sample(
                    id=str(identity),
                    category="val",
                    images=(data / "train_images" / f"{image}.jpg",),
                    prompt="\n".join((*lines, SHORT_ANSWER)),
                    options=(),
                    reference=answers,
                    aliases=(image,),
                )
            )
        unique([sample.id for sample in samples], path)
        return samples

    def grade(self, sample: Sample, prediction: Mapping[str, Any]) -> Grade:
        """M4C accuracy of the text."""
        return Grade(m4c_accuracy(prediction["text"], sample.reference))


def _read_tokens(path: Path) -> dict[str, list[str]]:
    tokens = {}
    for number, record in enumerate(read_objects(path, "data"), start=1):
        where = f"{path}, record {number}"
        found = record.get("ocr_tokens")
        if not isinstance(found, list) or not all(isinstance(token, str) for token in found):
            raise InputError(f"{where}: 'ocr_tokens' must be a list of texts")
        tokens[text_of(record, "image_id", where)] = found
    return tokens
