"""MM-Vet (Yu et al. 2023): open questions that take several capabilities at once, graded by a language model.

Layout of the official release (``mm-vet.zip`` of yuweihao/MM-Vet)::

    mm-vet.json          {"v1_0": {"imagename", "question", "answer", "capability": ["ocr", "math"], …}, …}
    images/v1_0.png

or lmms-lab's Parquet (``test-*.parquet``), or VLMEvalKit's ``MMVet.tsv``.

The grading is the official one: its few-shot prompt at temperature 0, three tokens, the first word a score from 0.0 to
1.0; an unreadable reply is asked for again with a sentence more and a rising temperature. Where the official code then
counts 0.0, this one stops with an error.
"""

import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from llava_s2.errors import InputError
from llava_s2.eval.benchmark import Benchmark, Grade, HubFiles, Sample, Scoring
from llava_s2.eval.llava_prompts import MANY_NEW_TOKENS
from llava_s2.eval.report import unseen
from llava_s2.eval.run_folder import write_json
from llava_s2.eval.schema import Record, unique
from llava_s2.eval.tables import find_file, read_records, read_value

CAPABILITIES = {
    "rec": "recognition",
    "ocr": "OCR",
    "know": "knowledge",
    "gen": "language generation",
    "spat": "spatial awareness",
    "math": "math",
}

_INSTRUCTIONS = (Path(__file__).with_name("prompts") / "mmvet.txt").read_text(encoding="utf-8")
_ONCE_MORE = "\nPredict the correctness of the answer (digit): "
_TEMPERATURES = (0.0, 0.0, 0.5, 1.0, 1.5)
"""Of the first request and those after an unreadable reply."""


class MMVet(Benchmark):
    """MM-Vet by a judge."""

    name: ClassVar[str] = "mmvet"
    hub: ClassVar[Mapping[str, HubFiles]] = {"": HubFiles("lmms-lab/MMVet", ("data/*",))}
    protocols: ClassVar[Mapping[Scoring, str]] = {
        "generate": "MM-Vet: greedy decoding of the bare question, graded by a judge with the official prompt"
    }
    categories: ClassVar[Mapping[str, str]] = CAPABILITIES
    max_new_tokens: ClassVar[int] = MANY_NEW_TOKENS
    judge_runs: ClassVar[int] = 5
    without_judge: ClassVar[str] = (
        "no score: MM-Vet's answers are graded by a language model; name one with --judge-url and --judge-model, "
        "or hand the file below to the official evaluator"
    )

    def load(self, data: Path, scoring: Scoring | None) -> list[Sample]:
        """Reads the questions; a question counts in each of its capabilities and in their integration."""
        samples = []
        for identity, record in _read(data):
            named = re.findall(r"[a-z]+", str(record.first("capability", "category")))  # of a list, or of "rec,math"
            if not named or not set(named) <= CAPABILITIES.keys():
                raise record.fault(f"'capability' must be a list of {', '.join(CAPABILITIES)}")
            capabilities = [name for name in CAPABILITIES if name in named]
            question = record.prompt("question")
            samples.append(
                Sample(
                    id=identity,
                    category=" + ".join(capabilities) if len(capabilities) > 1 else f"{capabilities[0]} alone",
                    images=record.images("image") or (data / "images" / record.text("imagename"),),
                    prompt=question,
                    options=(),
                    reference={"question": question, "answer": record.text("answer")},
                    aliases=(identity.removeprefix("v1_"),),
                    also=tuple(capabilities),
                )
            )
        unique([sample.id for sample in samples], data)
        return samples

    def judge(
        self, ask: Callable[..., str], sample: Sample, prediction: Mapping[str, Any], runs: int
    ) -> dict[str, Any]:
        """The scores of each run, ``scores``. InputError if a reply never holds one: no answer is scored 0.0 for it."""
        prompt = judge_prompt(sample.reference["question"], sample.reference["answer"], prediction["text"])
        scores = []
        for run in range(runs):
            for attempt, temperature in enumerate(_TEMPERATURES):
                words = prompt + _ONCE_MORE if attempt else prompt
                reply = ask(words, temperature=temperature, max_tokens=3, run=run)
                if (score := parse_score(reply)) is not None:
                    break
            else:
                raise InputError(
                    f"question {sample.id}: the judge gave no score in {len(_TEMPERATURES)} replies, at last "
                    f"{reply[:40]!r}; name another --judge-model, or delete the prediction to ask the model again"
                )
            scores.append(score)
        return {"scores": scores}

    def grade(self, sample: Sample, prediction: Mapping[str, Any]) -> Grade | None:
        """The mean of the judge's scores, None before there are any."""
        scores = prediction.get("scores")
        if not isinstance(scores, list) or not scores:
            return None
        if not all(isinstance(score, int | float) and 0 <= score <= 1 for score in scores):
            raise InputError(f"question {sample.id}: 'scores' must be numbers from 0 to 1")
        return Grade(float(statistics.fmean(scores)))

    def judged(self, predictions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The total of each run over all questions, and their standard deviation, as the official table has them."""
        scores = [[0.0] * len(p["scores"]) if unseen(p) else p["scores"] for p in predictions]
        totals = [statistics.fmean(run) for run in zip(*scores, strict=True)]
        return {"totals": totals, "spread": statistics.pstdev(totals)}

    def write_submission(
        self, samples: Sequence[Sample], predictions: Mapping[str, Mapping[str, Any]], folder: Path
    ) -> Path | None:
        """``{"v1_0": answer, …}`` as the official evaluator takes it."""
        path = folder / "mm-vet.json"
        write_json(path, {sample.id: predictions[sample.id]["text"] for sample in samples})
        return path


def _read(data: Path) -> Iterator[tuple[str, Record]]:
    """The questions of whichever release, each with its id."""
    paths = find_file(data, ("mm-vet.json", "test-*.parquet", "MMVet.tsv"))
    if paths[0].suffix != ".json":
        records = [record for path in paths for record in read_records(path, images=("image",))]
        yield from ((record.identity("question_id", "index"), record) for record in records)
        return
    value = read_value(paths[0])
    if not isinstance(value, dict) or not value or not all(isinstance(fields, dict) for fields in value.values()):
        raise InputError(f"{paths[0]}: must be an object of id: question, at least one")
    yield from ((identity, Record(fields, f"{paths[0]}, {identity}")) for identity, fields in value.items())


def judge_prompt(question: str, answer: str, prediction: str) -> str:
    """The official message: instructions, examples, and this question as the row to complete."""
    answer = answer.replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    return _INSTRUCTIONS + "\n" + " | ".join((question, answer, prediction, ""))


def parse_score(reply: str) -> float | None:
    """The score that a reply begins with, white space aside, or None."""
    try:
        score = float(reply.strip().split(" ")[0])
    except ValueError:
        return None
    return score if 0.0 <= score <= 1.0 else None
