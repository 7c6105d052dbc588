"""Runs any benchmark on any model: resumable, on any number of processes, with a report."""

import hashlib
import json
import logging
import platform
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

from tqdm import tqdm

from llava_s2 import __version__
from llava_s2.errors import InputError
from llava_s2.eval.batching import Halving, batches
from llava_s2.eval.benchmark import Benchmark, Sample, Scoring
from llava_s2.eval.loading import Mark, check_images, load_ahead, mark, unreadable
from llava_s2.eval.local_model import LocalModel, chosen
from llava_s2.eval.openai_servers import without_reasoning
from llava_s2.eval.processes import Processes
from llava_s2.eval.report import (
    BAD_IMAGE,
    FAILED,
    REFUSED,
    REPLIES,
    WITHOUT_REASONING,
    fold_groups,
    grade_of,
    graded_record,
    headline,
    tally,
)
from llava_s2.eval.run_folder import (
    PREDICTIONS,
    REPORT,
    RUN,
    RunFolder,
    append_predictions,
    part_name,
    write_json,
)
from llava_s2.formats.model_source import ModelSource

OnBadImage = Literal["error", "skip"]

_log = logging.getLogger(__name__)
_PACKAGES = ("torch", "transformers", "tokenizers", "peft", "accelerate", "numpy", "pillow")
_SECONDS_BETWEEN_LOOKS = 0.5


class Model(Protocol):
    """What the runner asks of a model, local or remote; see `LocalModel`."""

    def fingerprint(self) -> dict[str, Any]: ...
    def about(self) -> dict[str, Any]: ...
    def automatic_size(self, samples: Sequence[Sample], answer_tokens: int) -> int: ...
    def prepare(self, image: Any, file: Any) -> Any: ...
    def generate(self, batch: Sequence[tuple[Sample, Any]], max_new_tokens: int) -> list[dict[str, Any]]: ...
    def rank(self, batch: Sequence[tuple[Sample, Any]]) -> list[dict[str, Any]]: ...


@dataclass(frozen=True)
class _Job:
    """What every process of a run is told."""

    benchmark: Benchmark
    model: Model
    data: Path
    output: Path
    scoring: Scoring
    limit: int | None
    max_new_tokens: int
    text_only: bool
    skip: bool
    turn: bool


def evaluate(
    benchmark: Benchmark,
    model: "ModelSource | Model",
    data: Path,
    output: Path,
    *,
    scoring: Scoring | None = None,
    limit: int | None = None,
    batch_size: int | None = None,
    max_new_tokens: int | None = None,
    text_only: bool = False,
    on_bad_image: OnBadImage = "error",
    exif: Literal["turn", "ignore"] = "turn",
) -> dict[str, Any] | None:
    """Answers the benchmark's questions and writes ``predictions.jsonl`` and ``report.json`` into ``output``.

    A run that was cut off continues where it stopped when it is started again with the same arguments, on any number
    of processes; questions whose images have changed since are asked again. Several processes (``torchrun``,
    ``accelerate launch``) need an ``output`` that all of them see.

    Args:
        benchmark: the task.
        model: loaded only if a question is unanswered.
        data: the task's data folder; all of it is checked before the model is loaded.
        output: a folder of this run alone.
        scoring: one of the benchmark's protocols, by default its first.
        limit: number of questions, spread evenly over the categories; a larger limit continues a smaller one.
        batch_size: most questions at once, by default what the memory takes. Likelihood takes the options of a question
            at once, and questions together only if they are about the same images.
        max_new_tokens: bound on a generated answer, by default the benchmark's.
        text_only: leaves the images out, to see what the questions alone give away.
        on_bad_image: what to do where an image cannot be read, or a server refuses a question that it was asked: stop,
            or count the questions as wrong and name the reason.
        exif: whether images are turned as their EXIF orientation says; the benchmarks' own code does not.

    Returns:
        The report, as written; None in every process but the first.

    Raises:
        InputError: bad data or model, or ``output`` holds another run's predictions.
    """
    scoring = scoring or benchmark.default_scoring
    if scoring not in benchmark.protocols:
        raise InputError(f"{benchmark.name} has no scoring {scoring!r}; use {' or '.join(benchmark.protocols)}")
    asked: Model = LocalModel(model) if isinstance(model, ModelSource) else model
    new_tokens = max_new_tokens or benchmark.max_new_tokens
    skip, turn = on_bad_image == "skip", exif == "turn"
    job = _Job(benchmark, asked, data, output, scoring, limit, new_tokens, text_only, skip, turn)
    processes = Processes.from_environment(str(output.resolve()))
    if not processes.first:
        _run_worker(processes, job)
        return None
    if lacking := [package for package in benchmark.requires if find_spec(package) is None]:
        raise InputError(f'{benchmark.name} takes {", ".join(lacking)}: pip install "llava-s2[eval]"')
    try:
        everything = benchmark.load(data, scoring)
        _check_words(everything, scoring)
        samples = _spread(everything, limit)
        if not job.skip and not text_only:
            check_images(everything, samples)
        run = _run(job, everything)
        folder = RunFolder(output, run)
        done = folder.resume()
        folder.forget(done, _stale(samples, done))
    except (InputError, OSError):
        processes.share("start", lambda: {"failed": True})
        raise
    processes.share("start", lambda: {"run": _digest(run), "done": list(done)})
    pending = [_shown(sample, text_only) for sample in samples if sample.id not in done]
    if pending:
        work = _Work(processes, job, pending, batch_size, folder)
        (output / REPORT).unlink(missing_ok=True)  # of fewer answers, or of those that are asked again
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
    for sample in samples:  # anew, since another rule may read answers of before
        done[sample.id] = graded_record(benchmark, sample, done[sample.id])
    folder.sort(done, (sample.id for sample in everything))
    report = _report(benchmark, run | folder.noted(), samples, done)
    submission = benchmark.write_submission(everything, done, output) if len(samples) == len(everything) else None
    report |= {
        **({"submission": str(submission)} if submission else {}),
        "questions_in_data": len(everything),
        "data": str(data.resolve()),
        "batch_size": batch_size or "auto",
        "processes": processes.count,
    }
    write_json(output / REPORT, report)
    return report


def _run_worker(processes: Processes, job: _Job) -> None:
    """What a process other than the first does: answers into a file of its own."""
    start = processes.share("start", dict)  # first, so that bad data is told once
    if start.get("failed"):
        return
    everything = job.benchmark.load(job.data, job.scoring)
    if _digest(_run(job, everything)) != start["run"]:
        raise InputError(f"process {processes.rank} has other data or arguments than the first")
    if not (job.output / RUN).exists():
        raise InputError(f"{job.output}: process {processes.rank} does not see this folder, which all must share")
    done = set(start["done"])
    pending = [_shown(s, job.text_only) for s in _spread(everything, job.limit) if s.id not in done]
    if not pending:
        return
    for records in _Work(processes, job, pending).predictions():
        append_predictions(job.output / part_name(processes.rank), records)
        processes.add("answered", len(records))


class _Work:
    """The unanswered questions, and the model that answers this process's share of them."""

    def __init__(
        self,
        processes: Processes,
        job: _Job,
        pending: Sequence[Sample],
        batch_size: int | None = None,
        folder: RunFolder | None = None,
    ) -> None:
        self._job = job
        self._warned = False
        about = job.model.about()  # loads the model
        size = processes.share(
            "batch size", lambda: batch_size or job.model.automatic_size(pending, job.max_new_tokens)
        )
        if folder is not None:
            folder.note(about)
        self._batches = batches(pending, size, job.scoring)
        self._claims = processes.claim(len(self._batches))
        self._predict = Halving(self._ask)

    def predictions(self) -> Iterator[list[dict[str, Any]]]:
        """The records of each batch that this process gets to answer."""
        claimed = (self._batches[number] for number in self._claims)
        start = time.perf_counter()
        for batch, shown in load_ahead(claimed, self._job.model.prepare, skip=self._job.skip, turn=self._job.turn):
            prepared = {sample.id: images for sample, images in zip(batch, shown, strict=True)}
            readable = [(sample, prepared[sample.id].images) for sample in batch if not prepared[sample.id].fault]
            found = {sample.id: p for (sample, _), p in zip(readable, self._predict(readable), strict=True)}
            for identity, images in prepared.items():
                if images.fault:
                    found[identity] = {"text": "", BAD_IMAGE: images.fault}
                    continue
                if images.conversions:
                    found[identity]["conversions"] = list(images.conversions)
                if images.marks:
                    found[identity] |= _marked(images.marks)
            seconds = (time.perf_counter() - start) / len(batch)
            failed = [i for i, prediction in found.items() if FAILED in prediction]
            refused = [i for i, prediction in found.items() if REFUSED in prediction and not self._job.skip]
            answered = [
                {**_record(self._job.benchmark, sample, found[sample.id]), "seconds": round(seconds, 4)}
                for sample in batch
                if sample.id not in (*failed, *refused)
            ]
            if answered:  # these are kept, whatever became of the others
                yield answered
            if failed:
                raise InputError(found[failed[0]][FAILED])
            if refused:
                raise InputError(
                    f"question {refused[0]}: {found[refused[0]][REFUSED]}; --on-bad-image skip counts such questions "
                    "as wrong"
                )
            start = time.perf_counter()

    def _ask(self, batch: Sequence[tuple[Sample, tuple[Any, ...]]]) -> list[dict[str, Any]]:
        if self._job.scoring == "likelihood":
            ranked = self._job.model.rank(batch)
            pairs = zip(batch, ranked, strict=True)
            return [chosen(sample, told) if "losses" in told else {"text": "", **told} for (sample, _), told in pairs]
        predictions = []
        for prediction in self._job.model.generate(batch, self._job.max_new_tokens):
            whole = prediction.pop("text")
            spoken = without_reasoning(whole)
            text = self._job.benchmark.answer(spoken)
            told = {"generated": whole} if text != whole else {}
            if spoken != whole:
                told["reasoning"] = True
            if not spoken and (prediction.pop("cut", False) or whole):
                told["without_answer"] = True
                self._warn_of_reasoning()
            predictions.append({"text": text, **prediction, **told})
        return predictions

    def _warn_of_reasoning(self) -> None:
        if not self._warned:
            bound = self._job.max_new_tokens
            _log.warning(
                "an answer is empty because all %d new tokens went into reasoning; see --max-new-tokens", bound
            )
        self._warned = True


def _check_words(samples: Sequence[Sample], scoring: Scoring) -> None:
    """Raises InputError where words hold an image's placeholder, for which there would be no image."""
    for sample in samples:
        said = ["" if sample.interleaved else sample.prompt, *(sample.options if scoring == "likelihood" else ())]
        if any("<image>" in words for words in said):
            raise InputError(f"question {sample.id}: its words hold <image>, which stands for an image; mend the data")


def _record(benchmark: Benchmark, sample: Sample, prediction: dict[str, Any]) -> dict[str, Any]:
    asked = {"question_id": sample.id, "category": sample.category, "prompt": sample.prompt}
    record = {**asked, **prediction, "options": list(sample.options)}
    if sample.also:
        record["also"] = list(sample.also)
    if sample.group:
        record["group"] = sample.group
    if sample.aliases:
        record["aliases"] = list(sample.aliases)
    return graded_record(benchmark, sample, record)


def _marked(marks: Sequence[Mark]) -> dict[str, list[Any]]:
    """The fields of a prediction that tell a replaced image from before."""
    return {"image_bytes": [size for size, _ in marks], "image_checksums": [checksum for _, checksum in marks]}


def _stale(samples: Sequence[Sample], done: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Questions to ask again: a server refused them, their images' files have changed, or are unreadable no longer."""
    stale = []
    skipped = {}
    marked = [image for sample in samples if "image_checksums" in done.get(sample.id, ()) for image in sample.images]
    looked = tqdm(dict.fromkeys(marked), desc="looking for replaced images", delay=2)
    now = {image: mark(image) for image in looked}
    for sample in samples:
        if (record := done.get(sample.id)) is None:
            continue
        if REFUSED in record:
            stale.append(sample.id)
        elif BAD_IMAGE in record:
            skipped[sample.id] = sample.images
        elif "image_checksums" in record and not _marked([now[i] for i in sample.images]).items() <= record.items():
            stale.append(sample.id)
    bad = unreadable(list(dict.fromkeys(image for images in skipped.values() for image in images))) if skipped else {}
    return [*stale, *(identity for identity, images in skipped.items() if not any(image in bad for image in images))]


def _run(job: _Job, everything: Sequence[Sample]) -> dict[str, Any]:
    """What the predictions depend on, as far as it is known before the model is loaded."""
    benchmark, place = job.benchmark, f"{job.data}/"
    names = [[image.name.replace(place, "") for image in sample.images] for sample in everything]
    return {
        "task": benchmark.name,
        "scoring": job.scoring,
        **({"variant": benchmark.variant} if benchmark.variant else {}),
        **({"rule": benchmark.rule} if benchmark.rule else {}),
        **({"seed": benchmark.seed} if benchmark.seed is not None else {}),
        "protocol": benchmark.protocol(job.scoring) + (", without the image" if job.text_only else ""),
        **({"text_only": True} if job.text_only else {}),
        "max_new_tokens": job.max_new_tokens,
        "exif_orientation": "turned" if job.turn else "ignored",
        **job.model.fingerprint(),
        "questions": _digest([(s.id, s.category, shown) for s, shown in zip(everything, names, strict=True)]),
        "prompts": _digest([(s.id, s.prompt) for s in everything]),
        "options": _digest([(s.id, s.options) for s in everything]),
        "references": _digest([(s.id, benchmark.gold(s)) for s in everything]),
    }


def _report(
    benchmark: Benchmark, about: dict[str, Any], samples: Sequence[Sample], done: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    import torch

    grades = [(sample, grade_of(benchmark, sample, done[sample.id])) for sample in samples]
    graded = [(sample, grade) for sample, grade in grades if grade is not None]
    bad = {sample.id: done[sample.id][BAD_IMAGE] for sample in samples if BAD_IMAGE in done[sample.id]}
    refused = {sample.id: done[sample.id][REFUSED] for sample in samples if REFUSED in done[sample.id]}
    if len(refused) == len(samples):
        likelihood = about["scoring"] == "likelihood"
        hint = "; likelihood takes prompt_logprobs, --scoring generate does not" if likelihood else ""
        raise InputError(f"the server refused every question, as {next(iter(refused.values()))}{hint}")
    replies = {kind: count for kind in REPLIES if (count := sum(kind in done[sample.id] for sample in samples))}
    if "reasoning" in replies:
        about = about | {"protocol": f"{about['protocol']}; {WITHOUT_REASONING}"}
    return {
        **about,
        "results": tally(benchmark, fold_groups(graded)),
        **headline(benchmark, graded, done),
        "near_ties": sum(bool(done[sample.id].get("near_tie")) for sample in samples),
        **({"bad_images": bad} if bad else {}),
        **({REFUSED: refused} if refused else {}),
        **({"replies": replies} if replies else {}),
        "converted_images": _conversions(samples, done),
        "seconds_per_image": sum(done[sample.id]["seconds"] for sample in samples) / len(samples),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})",
        "question_ids": [sample.id for sample in samples],
        "kit": f"llava-s2 {__version__}",
        "versions": {
            "llava-s2": __version__,
            "python": platform.python_version(),
            **{package: version(package) for package in _PACKAGES},
        },
    }


def _conversions(samples: Sequence[Sample], done: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """How many questions' images had to be converted, by what was done (keys of ``CONVERSIONS``)."""
    return dict(Counter(name for sample in samples for name in done[sample.id].get("conversions", ())))


def _shown(sample: Sample, text_only: bool) -> Sample:
    if not text_only:
        return sample
    return replace(sample, images=(), prompt=sample.prompt.replace("<image>", ""), interleaved=False)


def _spread(samples: Sequence[Sample], limit: int | None) -> list[Sample]:
    """The first ``limit`` questions, in an order in which any first part has each category in its share.

    The CircularEval variants of one question stay together and count as one.
    """
    questions: dict[str, list[Sample]] = {}
    for sample in samples:
        questions.setdefault(sample.group or sample.id, []).append(sample)
    places: dict[str, list[list[Sample]]] = {}
    for forms in questions.values():
        places.setdefault(forms[0].category, []).append(forms)
    ranked = [((rank + 0.5) / len(group), forms) for group in places.values() for rank, forms in enumerate(group)]
    chosen_forms = sorted(ranked, key=lambda pair: pair[0])[:limit]
    return [sample for _, forms in chosen_forms for sample in forms]


def _digest(value: Any) -> str:
    text = json.dumps(value, default=lambda item: asdict(item) if is_dataclass(item) else str(item))  # type: ignore[arg-type]
    return hashlib.sha256(text.encode()).hexdigest()[:16]
