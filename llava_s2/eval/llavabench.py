"""LLaVA-Bench in the wild (Liu et al. 2023): 60 open questions; a judge holds each answer against GPT-4's.

Layout of the official release (``liuhaotian/llava-bench-in-the-wild``)::

    questions.jsonl           {"question_id", "image", "text", "category": conv, detail or complex}
    context.jsonl             {"image", "caption"}: what the judge sees in place of the image
    answers_gpt4.jsonl        {"question_id", "text"}
    images/001.jpg

or lmms-lab's Parquet (``train-*.parquet``), or VLMEvalKit's ``LLaVABench.tsv``, each row with all of it.
The judge gives both answers 1 to 10 points; the score is the sum of the model's over the sum of GPT-4's.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from llava_s2.errors import InputError
from llava_s2.eval.benchmark import Benchmark, Grade, HubFiles, Sample, Scoring
from llava_s2.eval.llava_prompts import MANY_NEW_TOKENS
from llava_s2.eval.schema import unique
from llava_s2.eval.tables import find_file, read_records

_RULE = (Path(__file__).with_name("prompts") / "llavabench.txt").read_text(encoding="utf-8").strip()
_SYSTEM = "You are a helpful and precise assistant for checking the quality of the answer."
_TRIES = 3


class LLaVABench(Benchmark):
    """LLaVA-Bench in the wild by a judge, with LLaVA's own prompts."""

    name: ClassVar[str] = "llavabench"
    folders: ClassVar[tuple[str, ...]] = ("llava-bench-in-the-wild",)
    hub: ClassVar[Mapping[str, HubFiles]] = {"": HubFiles("liuhaotian/llava-bench-in-the-wild", ("*",))}
    protocols: ClassVar[Mapping[Scoring, str]] = {
        "generate": "LLaVA-Bench in the wild: greedy decoding of the bare question, judged beside GPT-4's answers"
    }
    categories: ClassVar[Mapping[str, str]] = {"conv": "conversation", "detail": "description", "complex": "reasoning"}
    max_new_tokens: ClassVar[int] = MANY_NEW_TOKENS
    judge_runs: ClassVar[int] = 1
    without_judge: ClassVar[str] = (
        "no score: LLaVA-Bench's answers are graded by a language model; name one with --judge-url and --judge-model"
    )

    def load(self, data: Path, scoring: Scoring | None) -> list[Sample]:
        """Reads the questions, and what the judge is told of each."""
        paths = find_file(data, ("questions.jsonl", "train-*.parquet", "LLaVABench.tsv"))
        captions: dict[str, Any] = {}
        answers: dict[str, str] = {}
        if paths[0].suffix == ".jsonl":
            captions = {r.text("image"): r.first("caption") for r in read_records(data / "context.jsonl")}
            answers = {r.identity("question_id"): r.text("text") for r in read_records(data / "answers_gpt4.jsonl")}
        samples = []
        for record in (record for path in paths for record in read_records(path, images=("image",))):
            identity, shown = record.identity("question_id", "index"), record.images("image")
            caption = record.first("caption") if shown else captions.get(record.text("image"))
            answer = record.text("gpt_answer", "gpt4_ans") if shown else answers.get(identity)
            if answer is None or caption is None:
                raise record.fault("has no answer of GPT-4's, or its image no context")
            samples.append(
                Sample(
                    id=identity,
                    category=record.one_of("category", tuple(self.categories)),
                    images=shown or (data / "images" / record.text("image"),),
                    prompt=record.prompt("text", "question"),
                    options=(),
                    reference={
                        "context": "\n".join(map(str, caption)) if isinstance(caption, list) else str(caption),
                        "question": record.text("text", "question"),
                        "answer": answer,
                    },
                )
            )
        unique([sample.id for sample in samples], data)
        return samples

    def judge(
        self, ask: Callable[..., str], sample: Sample, prediction: Mapping[str, Any], runs: int
    ) -> dict[str, Any]:
        """The points of both, ``points``: GPT-4's, then the model's. InputError if the judge gives none."""
        told = sample.reference
        prompt = (
            f"[Context]\n{told['context']}\n\n[Question]\n{told['question']}\n\n"
            f"[Assistant 1]\n{told['answer']}\n\n[End of Assistant 1]\n\n"
            f"[Assistant 2]\n{prediction['text']}\n\n[End of Assistant 2]\n\n[System]\n{_RULE}\n\n"
        )
        for attempt in range(_TRIES):
            review = ask(prompt, temperature=0.2, max_tokens=1024, run=attempt, system=_SYSTEM)
            if (points := parse_points(review)) is not None:
                return {"points": points, "review": review}
        raise InputError(f"question {sample.id}: the judge gave no two scores in {_TRIES} reviews; name another judge")

    def grade(self, sample: Sample, prediction: Mapping[str, Any]) -> Grade | None:
        """The model's points out of ten, None before there are any."""
        points = prediction.get("points")
        if not isinstance(points, list) or len(points) != 2:
            return None
        return Grade(min(1.0, max(0.0, float(points[1]) / 10)))

    def metrics(self, graded: Sequence[tuple[Sample, Grade, Mapping[str, Any]]]) -> dict[str, float]:
        """The model's points in percent of GPT-4's, the published figure."""
        found = {}
        for name in ("all", *self.categories):
            points = [p["points"] for s, _, p in graded if name in ("all", s.category) and "points" in p]
            if points:
                found[f"relative score, {name}"] = 100 * sum(p[1] for p in points) / sum(p[0] for p in points)
        return found


def parse_points(review: str) -> list[float] | None:
    """The two scores of a review's first line, or None."""
    try:
        first, second = review.strip().split("\n")[0].replace(",", " ").split()
        return [float(first), float(second)]
    except ValueError:
        return None
