"""VizWiz-VQA (Gurari et al. 2018): questions that blind people asked about their photos, many unanswerable.

Layout of the official release (vizwiz.org)::

    val.json     [{"image", "question", "answers": [{"answer", "answer_confidence"}, …], "answerable": 0 or 1}, …]
    val/VizWiz_val_00000000.jpg
    test.json    [{"image", "question"}, …]
    test/VizWiz_test_00000000.jpg
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from llava_s2.eval.benchmark import Benchmark, Grade, Sample, Scoring
from llava_s2.eval.llava_prompts import NEW_TOKENS, SHORT_ANSWER, UNANSWERABLE
from llava_s2.eval.run_folder import write_json
from llava_s2.eval.schema import unique
from llava_s2.eval.tables import choose_variant, read_records
from llava_s2.eval.vqa_accuracy import normalize_m4c, vizwiz_accuracy
from llava_s2.eval.vqav2 import check_answers


class VizWiz(Benchmark):
    """VizWiz, with LLaVA-1.5's prompt and its way from a model's words to a submitted answer."""

    name: ClassVar[str] = "vizwiz"
    protocols: ClassVar[Mapping[Scoring, str]] = {
        "generate": "VizWiz: greedy decoding of LLaVA-1.5's prompt with 'Unanswerable', M4C's answer processor, "
        "VizWiz accuracy"
    }
    categories: ClassVar[Mapping[str, str]] = {"answerable": "answerable", "unanswerable": "unanswerable"}
    max_new_tokens: ClassVar[int] = NEW_TOKENS
    variants: ClassVar[Mapping[str, str]] = {"val": "scored here", "test": "for the server"}

    def load(self, data: Path, scoring: Scoring | None) -> list[Sample]:
        """Reads the split; a question's id is its image's name."""
        self.variant = choose_variant(data, {name: f"{name}.json" for name in self.variants}, self.variant)
        path = data / f"{self.variant}.json"
        samples = []
        for number, record in enumerate(read_records(path)):
            image = record.text("image")
            if not image.startswith(f"VizWiz_{self.variant}_"):
                raise record.fault(f"image {image} is not of {self.variant}; is {path.name} another split's?")
            answers, category = None, "unscored"
            if self.variant == "val":
                answers = [person["answer"] for person in check_answers(record)]
                category = "answerable" if record.one_of("answerable", (0, 1)) else "unanswerable"
            # LLaVA capitalizes the questions and puts everything else of them in lower case.
            question = record.prompt("question").capitalize()
            samples.append(
                Sample(
                    id=image,
                    category=category,
                    images=(data / self.variant / image,),
                    prompt=f"{question}\n{UNANSWERABLE}\n{SHORT_ANSWER}",
                    options=(),
                    reference=answers,
                    aliases=(Path(image).stem, str(number)),
                )
            )
        unique([sample.id for sample in samples], path)
        return samples

    def answer(self, text: str) -> str:
        """As LLaVA submits it."""
        return normalize_m4c(text)

    def grade(self, sample: Sample, prediction: Mapping[str, Any]) -> Grade | None:
        """VizWiz accuracy of the text as it stands."""
        return Grade(vizwiz_accuracy(prediction["text"], sample.reference)) if sample.reference else None

    def write_submission(
        self, samples: Sequence[Sample], predictions: Mapping[str, Mapping[str, Any]], folder: Path
    ) -> Path | None:
        """Of the test split, ``[{"image", "answer"}, …]`` as the EvalAI server takes it."""
        if self.variant == "val":
            return None
        path = folder / "vizwiz_test.json"
        write_json(path, [{"image": sample.id, "answer": predictions[sample.id]["text"]} for sample in samples])
        return path
