"""VizWiz-VQA (Gurari et al. 2018): questions that blind people asked about their photos, many unanswerable.

Layout of the official release (vizwiz.org)::

    val.json     [{"image", "question", "answers": [{"answer", "answer_confidence"}, …], "answerable": 0 or 1}, …]
    val/VizWiz_val_00000000.jpg
    test.json    [{"image", "question"}, …]
    test/VizWiz_test_00000000.jpg

or lmms-lab's Parquet (``val-*.parquet``, ``test-*.parquet``), or VLMEvalKit's ``VizWiz.tsv``, which is val's.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from llava_s2.eval.benchmark import Benchmark, Grade, HubFiles, Sample, Scoring
from llava_s2.eval.llava_prompts import NEW_TOKENS, SHORT_ANSWER, UNANSWERABLE
from llava_s2.eval.run_folder import write_json
from llava_s2.eval.schema import unique
from llava_s2.eval.tables import find_file, read_records
from llava_s2.eval.vqa_accuracy import normalize_m4c, vizwiz_accuracy
from llava_s2.eval.vqav2 import check_answers


class VizWiz(Benchmark):
    """VizWiz, with LLaVA-1.5's prompt and its way from a model's words to a submitted answer."""

    name: ClassVar[str] = "vizwiz"
    hub: ClassVar[Mapping[str, HubFiles]] = {
        split: HubFiles("lmms-lab/VizWiz-VQA", (f"data/{split}-*",)) for split in ("val", "test")
    }
    protocols: ClassVar[Mapping[Scoring, str]] = {
        "generate": "VizWiz: greedy decoding of LLaVA-1.5's prompt with 'Unanswerable', M4C's answer processor, "
        "VizWiz accuracy"
    }
    categories: ClassVar[Mapping[str, str]] = {"answerable": "answerable", "unanswerable": "unanswerable"}
    max_new_tokens: ClassVar[int] = NEW_TOKENS
    variants: ClassVar[Mapping[str, str]] = {"val": "scored here", "test": "for the server"}

    def load(self, data: Path, scoring: Scoring | None) -> list[Sample]:
        """Reads the split; a question's id is its image's name."""
        files = {"val": ("val.json", "val-*.parquet", "VizWiz.tsv"), "test": ("test.json", "test-*.parquet")}
        paths = find_file(data, [name for v in self.variants if self.variant in (None, v) for name in files[v]])
        self.variant = self.variant or ("test" if paths[0].name.startswith("test") else "val")
        samples = []
        records = (record for path in paths for record in read_records(path, images=("image",)))
        for number, record in enumerate(records):
            shown = record.images("image")
            name = record.optional("question_id", "image") or f"VizWiz_val_{record.identity('index')}"
            image = f"{name.removesuffix('.jpg')}.jpg"
            if not image.startswith(f"VizWiz_{self.variant}_"):
                raise record.fault(f"image {image} is not of {self.variant}; is the file another split's?")
            answers, category = None, "all"
            if self.variant == "val":
                listed = record.get("answers")
                named = isinstance(listed, list) and not isinstance(next(iter(listed), ""), str)
                answers = [p["answer"] for p in check_answers(record)] if named else record.texts("answers", "answer")
                given = record.first("answerable", "category")
                category = "all" if given is None else "unanswerable" if given in (0, "unanswerable") else "answerable"
            # LLaVA capitalizes the questions and puts everything else of them in lower case.
            question = record.prompt("question").capitalize()
            samples.append(
                Sample(
                    id=image,
                    category=category,
                    images=shown or (data / self.variant / image,),
                    prompt=f"{question}\n{UNANSWERABLE}\n{SHORT_ANSWER}",
                    options=(),
                    reference=answers,
                    aliases=(Path(image).stem, str(number)),
                )
            )
        unique([sample.id for sample in samples], paths[0])
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
