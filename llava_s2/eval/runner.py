"""Runs any benchmark on any model: resumable, on any number of processes, with a report."""

import hashlib
import json
import math
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, is_dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from llava_s2 import __version__
from llava_s2.errors import InputError
from llava_s2.eval.batching import Halving, automatic_size, batches
from llava_s2.eval.benchmark import Benchmark, Sample, Scoring
from llava_s2.eval.loading import check_images, load_ahead
from llava_s2.eval.predictions import (
    PREDICTIONS,
    REPORT,
    RUN,
    RunFolder,
    append_predictions,
    part_name,
    write_json,
)
from llava_s2.eval.processes import Processes
from llava_s2.eval.report import fold_groups, tally
from llava_s2.model.arguments import ModelSource
from llava_s2.model.inference import Pictures

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

_PACKAGES = ("torch", "transformers", "tokenizers", "peft", "accelerate", "numpy", "pillow")
_SECONDS_BETWEEN_LOOKS = 0.5


def evaluate(
    benchmark: Benchmark,
    source: ModelSource,
    data: Path,
    output: Path,
    *,
    scoring: Scoring | None = None,
    limit: int | None = None,
    batch_size: int | None = None,
    text_only: bool = False,
) -> dict[str, Any] | None:
    """Answers the benchmark's questions and writes ``predictions.jsonl`` and ``report.json`` into ``output``.

    A run that was cut off continues where it stopped when it is started again with the same arguments, on any number
    of processes. Several processes (``torchrun``, ``accelerate launch``) need an ``output`` that all of them see.

    Args:
        benchmark: the task.
        source: the model, loaded only if a question is unanswered.
        data: the task's data folder; all of it is checked before the model is loaded.
        output: a folder of this run alone.
        scoring: one of the benchmark's protocols, by default its first.
        limit: number of questions, spread evenly over the categories; a larger limit continues a smaller one.
        batch_size: most questions at once, by default what the memory takes. Likelihood takes the options of a question
            at once, and questions together only if they are about the same images.
        text_only: leaves the images out, to see what the questions alone give away.

    Returns:
        The report, as written; None in every process but the first.

    Raises:
        InputError: bad data or model, or ``output`` holds another run's predictions.
    """
    scoring = scoring or benchmark.default_scoring
    if scoring not in benchmark.protocols:
        raise InputError(f"{benchmark.name} has no scoring {scoring!r}; use {' or '.join(benchmark.protocols)}")
    processes = Processes.from_environment()
    if not processes.first:
        _help(processes, benchmark, source, data, output, scoring, limit, text_only)
        return None
    everything = benchmark.load(data, scoring)
    samples = _spread(everything, limit)
    check_images(everything, samples)
    run = _run(benchmark, source, everything, scoring, text_only)
    folder = RunFolder(output, run)
    done = folder.resume()
    processes.share("start", lambda: {"run": _digest(run), "done": list(done)})
    pending = [_shown(sample, text_only) for sample in samples if sample.id not in done]
    if pending:
        work = _Work(processes, benchmark, source, scoring, pending, batch_size, folder)
        with tqdm(total=len(samples), initial=len(samples) - len(pending), desc=benchmark.name, unit="question") as bar:
            for records in work.predictions():
                append_predictions(output / PREDICTIONS, records)
                done |= {record["question_id"]: record for record in records}
                bar.update(bar.initial + processes.add("answered", len(records)) - bar.n)
            while (answered := processes.add("answered", 0)) < len(pending):
                bar.update(bar.initial + answered - bar.n)
                time.sleep(_SECONDS_BETWEEN_LOOKS)
        if processes.count > 1:
            done = folder.resume()
            if lost := [sample.id for sample in samples if sample.id not in done]:
                raise InputError(
                    f"{output}: {len(lost)} predictions of other processes are not here, such as {lost[0]}; do all "
                    "processes see this folder? Start the same command again"
                )
    folder.sort(done, (sample.id for sample in everything))
    report = _report(benchmark, run | folder.noted(), samples, done)
    submission = benchmark.write_submission(everything, done, output) if len(samples) == len(everything) else None
    report |= {
        **({"submission": str(submission)} if submission else {}),
        "questions_in_data": len(everything),
        "batch_size": batch_size or "auto",
        "processes": processes.count,
    }
    write_json(output / REPORT, report)
    return report


def _help(
    processes: Processes,
    benchmark: Benchmark,
    source: ModelSource,
    data: Path,
    output: Path,
    scoring: Scoring,
    limit: int | None,
    text_only: bool,
) -> None:
    """What a process other than the first does: answers into a file of its own."""
    start = processes.share("start", dict)  # first, so that bad data is told once
    everything = benchmark.load(data, scoring)
    if _digest(_run(benchmark, source, everything, scoring, text_only)) != start["run"]:
        raise InputError(f"process {processes.rank} has other data or arguments than the first")
    if not (output / RUN).exists():
        raise InputError(f"{output}: process {processes.rank} does not see this folder, which all must share")
    done = set(start["done"])
    pending = [_shown(sample, text_only) for sample in _spread(everything, limit) if sample.id not in done]
    if not pending:
        return
    for records in _Work(processes, benchmark, source, scoring, pending).predictions():
        append_predictions(output / part_name(processes.rank), records)
        processes.add("answered", len(records))


class _Work:
    """The unanswered questions, and the model that answers this process's share of them."""

    def __init__(
        self,
        processes: Processes,
        benchmark: Benchmark,
        source: ModelSource,
        scoring: Scoring,
        pending: Sequence[Sample],
        batch_size: int | None = None,
        folder: RunFolder | None = None,
    ) -> None:
        model, processor = source.load()
        size = processes.share(
            "batch size", lambda: batch_size or automatic_size(model, processor, pending, benchmark.max_new_tokens)
        )
        if folder is not None:
            folder.note(_loaded(source, model, processor))
        self._benchmark = benchmark
        self._processor = processor
        self._batches = batches(pending, size, scoring)
        self._claims = processes.claim(len(self._batches))
        predict = partial(_by_likelihood if scoring == "likelihood" else _by_generation, benchmark, model, processor)
        self._predict = Halving(predict)

    def predictions(self) -> Iterator[list[dict[str, Any]]]:
        """The records of each batch that this process gets to answer."""
        claimed = (self._batches[number] for number in self._claims)
        start = time.perf_counter()
        for batch, pictures in load_ahead(claimed, self._processor):
            predictions = self._predict(list(zip(batch, pictures, strict=True)))
            seconds = (time.perf_counter() - start) / len(batch)
            yield [
                {**_record(self._benchmark, sample, prediction), "seconds": round(seconds, 4)}
                for sample, prediction in zip(batch, predictions, strict=True)
            ]
            start = time.perf_counter()


def _record(benchmark: Benchmark, sample: Sample, prediction: dict[str, Any]) -> dict[str, Any]:
    record = {"question_id": sample.id, "category": sample.category, **prediction, "options": list(sample.options)}
    if sample.also:
        record["also"] = list(sample.also)
    if sample.group:
        record["group"] = sample.group
    if (grade := benchmark.grade(sample, record)) is not None:
        record |= {"correct": grade.correct, "parseable": grade.parseable}
    return record


def _by_likelihood(
    benchmark: Benchmark,
    model: "LlavaForConditionalGeneration",
    processor: "LlavaProcessor",
    batch: Sequence[tuple[Sample, Pictures]],
) -> list[dict[str, Any]]:
    from llava_s2.model.likelihood import rank_options

    pictures = batch[0][1]  # of all: see batches()
    rankings = rank_options(model, processor, pictures, [(sample.prompt, sample.options) for sample, _ in batch])
    predictions: list[dict[str, Any]] = []
    for (sample, _), ranking in zip(batch, rankings, strict=True):
        losses = ranking.losses
        if not all(map(math.isfinite, losses)):  # whichever compares smallest would pass for the answer
            raise InputError(
                f"question {sample.id}: the model's losses are {losses}, no numbers to compare; does its precision "
                "overflow? Choose --dtype float32 or bfloat16"
            )
        chosen = sample.options[losses.index(min(losses))]
        predictions.append({"text": chosen, "losses": losses, **({"near_tie": True} if ranking.near_tie else {})})
    return predictions


def _by_generation(
    benchmark: Benchmark,
    model: "LlavaForConditionalGeneration",
    processor: "LlavaProcessor",
    batch: Sequence[tuple[Sample, Pictures]],
) -> list[dict[str, Any]]:
    from llava_s2.eval.generation import answers

    samples, pictures = zip(*batch, strict=True)
    prompts = [sample.prompt for sample in samples]
    predictions: list[dict[str, Any]] = []
    for answer in answers(model, processor, pictures, prompts, benchmark.max_new_tokens):
        text = benchmark.answer(answer.text)
        raw = {} if text == answer.text else {"generated": answer.text}
        predictions.append({"text": text, **raw, **({"near_tie": True} if answer.near_tie else {})})
    return predictions


def _run(
    benchmark: Benchmark, source: ModelSource, everything: Sequence[Sample], scoring: Scoring, text_only: bool
) -> dict[str, Any]:
    """What the predictions depend on, as far as it is known before the model is loaded."""
    sizes = {i: i.stat().st_size if isinstance(i, Path) else None for s in everything for i in s.images}
    return {
        "task": benchmark.name,
        "scoring": scoring,
        **({"variant": benchmark.variant} if benchmark.variant else {}),
        **({"seed": benchmark.seed} if benchmark.seed is not None else {}),
        "protocol": benchmark.protocols[scoring] + (", without the image" if text_only else ""),
        **source.fingerprint(),
        "questions": _digest([(s.id, s.category, [(i.name, sizes[i]) for i in s.images]) for s in everything]),
        "prompts": _digest([(s.id, s.prompt, s.options, s.reference) for s in everything]),
    }


def _loaded(source: ModelSource, model: "LlavaForConditionalGeneration", processor: "LlavaProcessor") -> dict[str, Any]:
    """What only the loaded model tells."""
    from llava_s2.model.processor import aspect_ratio
    from llava_s2.model.templates import TEMPLATES

    vision_config: Any = model.config.vision_config
    chat_template = str(processor.chat_template)
    own = f"the checkpoint's own ({_digest(chat_template)})"
    return {
        "template": next((name for name, text in TEMPLATES.items() if text == chat_template), own),
        "image_mode": aspect_ratio(processor, vision_config),
        "dtype": str(model.dtype).removeprefix("torch."),
        "revisions": source.revisions(),
    }


def _report(
    benchmark: Benchmark, about: dict[str, Any], samples: Sequence[Sample], done: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    grades = [(sample, benchmark.grade(sample, done[sample.id])) for sample in samples]
    graded = [(sample, grade) for sample, grade in grades if grade is not None]
    return {
        **about,
        "results": tally(benchmark, fold_groups(graded)),
        "near_ties": sum(bool(done[sample.id].get("near_tie")) for sample in samples),
        "seconds_per_image": sum(done[sample.id]["seconds"] for sample in samples) / len(samples),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})",
        "question_ids": [sample.id for sample in samples],
        "versions": {
            "llava-s2": __version__,
            "python": platform.python_version(),
            **{package: version(package) for package in _PACKAGES},
        },
    }


def _shown(sample: Sample, text_only: bool) -> Sample:
    return replace(sample, images=()) if text_only else sample


def _spread(samples: Sequence[Sample], limit: int | None) -> list[Sample]:
    """The first ``limit`` questions, in an order in which any first part has each category in its share.

    The forms of one question stay together and count as one.
    """
    questions: dict[str, list[Sample]] = {}
    for sample in samples:
        questions.setdefault(sample.group or sample.id, []).append(sample)
    places: dict[str, list[list[Sample]]] = {}
    for forms in questions.values():
        places.setdefault(forms[0].category, []).append(forms)
    ranked = [((rank + 0.5) / len(group), forms) for group in places.values() for rank, forms in enumerate(group)]
    chosen = sorted(ranked, key=lambda pair: pair[0])[:limit]
    return [sample for _, forms in chosen for sample in forms]


def _digest(value: Any) -> str:
    text = json.dumps(value, default=lambda item: asdict(item) if is_dataclass(item) else str(item))  # type: ignore[arg-type]
    return hashlib.sha256(text.encode()).hexdigest()[:16]
