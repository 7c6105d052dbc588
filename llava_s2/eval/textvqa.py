"""TextVQA (Singh et al. 2019): questions whose answer is written somewhere in the image.

Layout of the official release (textvqa.org), or of LLaVA's evaluation folder::

    TextVQA_0.5.1_val.json              {"data": [{"question_id", "image_id", "question", "answers": [ten texts]}, …]}
    train_images/IMAGE_ID.jpg
    TextVQA_Rosetta_OCR_v0.2_val.json   {"data": [{"image_id", "ocr_tokens": […]}, …]}, for the variant ocr; or
    llava_textvqa_val_v051_ocr.jsonl    LLaVA-1.5's own prompts, {"question_id": IMAGE_ID, "text": …} in the same order

or lmms-lab's Parquet (``validation-*.parquet``, with OCR tokens), or VLMEvalKit's ``TextVQA_VAL.tsv`` (without).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from llava_s2.eval.benchmark import Benchmark, Grade, HubFiles, Sample, Scoring
from llava_s2.eval.llava_prompts import NEW_TOKENS, SHORT_ANSWER
from llava_s2.eval.schema import Record, unique
from llava_s2.eval.tables import find_file, read_records
from llava_s2.eval.vqa_accuracy import m4c_accuracy

_QUESTIONS = "TextVQA_0.5.1_val.json"
_OCR = "TextVQA_Rosetta_OCR_v0.2_val.json"
_PROMPTS = "llava_textvqa_val_v051_ocr.jsonl"
_PEOPLE = 10


class TextVQA(Benchmark):
    """TextVQA's validation questions, with LLaVA-1.5's prompt: the question alone, or with the OCR tokens."""

    name: ClassVar[str] = "textvqa"
    hub: ClassVar[Mapping[str, HubFiles]] = {"": HubFiles("lmms-lab/textvqa", ("data/validation*",))}
    protocols: ClassVar[Mapping[Scoring, str]] = {
        "generate": "TextVQA: greedy decoding of LLaVA-1.5's short-answer prompt, M4C accuracy"
    }
    categories: ClassVar[Mapping[str, str]] = {"val": "validation"}
    max_new_tokens: ClassVar[int] = NEW_TOKENS
    variants: ClassVar[Mapping[str, str]] = {
        "plain": "the question alone",
        "ocr": "with the Rosetta OCR tokens, as in LLaVA-1.5's published number",
    }

    def load(self, data: Path, scoring: Scoring | None) -> list[Sample]:
        """Reads the questions and, of ``ocr``, the tokens, which every image must have."""
        paths = find_file(data, (_QUESTIONS, "validation-*.parquet", "TextVQA_VAL.tsv"))
        self.variant = self.variant or next(iter(self.variants))
        prompts = _read_prompts(data) if self.variant == "ocr" and paths[0].suffix == ".json" else {}
        samples = []
        for record in (record for path in paths for record in read_records(path, "data", ("image",))):
            shown = record.images("image")
            image = record.identity("image_id", "index")
            # LLaVA capitalizes the questions, which are in lower case in the release.
            question = record.prompt("question").capitalize()
            if record.get("set_name", "val") != "val":
                raise record.fault(f"is of the split {record['set_name']!r}, not val; take {_QUESTIONS} as released")
            tokens = ""
            if self.variant == "ocr":
                own: dict[Any, str] = {image: _tokens_line(record)} if "ocr_tokens" in record else prompts
                if (image, question) not in own and image not in own:
                    raise record.fault(f"image {image} has no OCR tokens; are the files of one split?")
                tokens = own.get((image, question)) or own[image]
            samples.append(
                Sample(
                    id=record.identity("question_id", "index"),
                    category="val",
                    images=shown or (data / "train_images" / f"{image}.jpg",),
                    prompt="\n".join(filter(None, (question, tokens, SHORT_ANSWER))),
                    options=(),
                    reference=record.texts("answers", "answer", count=_PEOPLE),
                    aliases=(image,),
                )
            )
        unique([sample.id for sample in samples], paths[0])
        return samples

    def grade(self, sample: Sample, prediction: Mapping[str, Any]) -> Grade:
        """M4C accuracy of the text."""
        return Grade(m4c_accuracy(prediction["text"], sample.reference))


def _read_prompts(data: Path) -> dict[Any, str]:
    """Image, or image and question -> the prompt's line of OCR tokens."""
    if not (data / _OCR).is_file() and (data / _PROMPTS).is_file():
        lines = {}
        for record in read_records(data / _PROMPTS):
            question, tokens, _ = record.text("text").split("\n")
            lines[record.text("question_id"), question] = tokens
        return lines
    return {record.text("image_id"): _tokens_line(record) for record in read_records(data / _OCR, "data")}


def _tokens_line(record: Record) -> str:
    return f"Reference OCR token: {', '.join(record.texts('ocr_tokens'))}"
