"""Evaluation by the runner against one question at a time without prefix sharing, on the embedded default.

    python benchmarks/evaluation.py --output benchmarks/results/evaluation.json

Draws images with small objects (the project's own generator) and answers the same questions both ways in one process:

- generation: VQAv2's files and prompt, several questions an image, as VQAv2 has (5.4);
- likelihood: a V* folder, one question an image and two to four options.

The plain way is a batch of one for each question, and for each option a pass through the whole model of the image,
question and option. The two ways take turns, several rounds; reported are the best of each, and whether the answers are
equal. Loading the checkpoint and drawing are not timed; reading and preparing the images is. On a machine that others
use, too, CPU seconds on one thread (OMP_NUM_THREADS=1) say what the seconds of an idle one would.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llava_s2.eval import runner
from llava_s2.eval.benchmark import Benchmark, Sample
from llava_s2.eval.loading import read_image
from llava_s2.eval.vqav2 import VQAv2
from llava_s2.eval.vstar import VStar
from llava_s2.formats.model_source import ModelSource
from llava_s2.model.inference import assistant_message, encode_prompts, token_arguments, user_message
from llava_s2.model.labels import encode_messages
from llava_s2.synthetic.scene_files import write_vstar
from llava_s2.synthetic.scene_questions import naming_questions, relation_questions
from llava_s2.synthetic.scenes import SceneConfig, make_scene

CONFIG = SceneConfig(side=(1000, 1400))
_EMBEDDED = Path(runner.__file__).parents[1] / "model" / "embedded" / "finetuned_s2"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--questions", type=int, default=24, help="of each kind (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--dtype", default="float32", help="default: %(default)s")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args()
    source = ModelSource(str(_EMBEDDED), dtype=args.dtype)
    loaded = source.load()
    with tempfile.TemporaryDirectory() as folder:
        write_vqa(Path(folder, "vqa"), args.questions)
        write_vstar(Path(folder, "vstar"), args.questions // 2, args.questions // 2, config=CONFIG)
        kinds = {
            "generation": (VQAv2(), Path(folder, "vqa"), "generate", plain_generation),
            "likelihood": (VStar(), Path(folder, "vstar"), "likelihood", plain_likelihood),
        }
        results = {
            kind: compare(partial(run_batched, source, loaded), plain, loaded, benchmark, data, scoring, args.rounds)
            for kind, (benchmark, data, scoring, plain) in kinds.items()
        }
    report = {
        "command": f"OMP_NUM_THREADS={torch.get_num_threads()} python benchmarks/evaluation.py --questions "
        f"{args.questions} --rounds {args.rounds} --dtype {args.dtype}",
        "results": results,
        "model": "embedded S2 adapter (SmolLM2-135M, 49 visual tokens)",
        "cpu": f"{_cpu()}, {torch.get_num_threads()} threads",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    text = json.dumps(report, indent=2)
    print(text)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text + "\n", encoding="utf-8")


def compare(
    batched: Callable[..., dict[str, str]],
    plain: Callable[..., dict[str, str]],
    loaded: tuple[Any, Any],
    benchmark: Benchmark,
    data: Path,
    scoring: Any,
    rounds: int,
) -> dict[str, Any]:
    """Both ways in turns, ``rounds`` times; seconds are the best of the rounds."""
    samples = benchmark.load(data, scoring)
    seconds: dict[str, list[float]] = {"plain": [], "runner": []}
    cpu_seconds: dict[str, list[float]] = {"plain": [], "runner": []}
    answers: dict[str, dict[str, str]] = {}
    plain(loaded, benchmark, samples[:2])  # first calls allocate and choose kernels
    for _ in range(rounds):
        for name, way in (
            ("plain", lambda: plain(loaded, benchmark, samples)),
            ("runner", lambda: batched(benchmark, data, scoring)),
        ):
            begun, cpu_begun = time.perf_counter(), time.process_time()
            answers[name] = way()
            seconds[name].append(time.perf_counter() - begun)
            cpu_seconds[name].append(time.process_time() - cpu_begun)
    best = {name: min(laps) for name, laps in seconds.items()}
    cpu_best = {name: min(laps) for name, laps in cpu_seconds.items()}
    return {
        "questions": len(samples),
        "images": len({image for sample in samples for image in sample.images}),
        "equal": answers["plain"] == answers["runner"],
        "plain_seconds": round(best["plain"], 2),
        "runner_seconds": round(best["runner"], 2),
        "ratio": round(best["plain"] / best["runner"], 2),
        "cpu_ratio": round(cpu_best["plain"] / cpu_best["runner"], 2),
        "all_seconds": {name: [round(lap, 2) for lap in laps] for name, laps in seconds.items()},
        "all_cpu_seconds": {name: [round(lap, 2) for lap in laps] for name, laps in cpu_seconds.items()},
    }


def run_batched(
    source: ModelSource, loaded: tuple[Any, Any], benchmark: Benchmark, data: Path, scoring: Any
) -> dict[str, str]:
    """A whole run of the runner, files and report included, with the model that is there."""

    class Loaded(ModelSource):
        def load(self) -> Any:
            return loaded

    with tempfile.TemporaryDirectory() as output:
        runner.evaluate(benchmark, Loaded(**vars(source)), data, Path(output), scoring=scoring)
        lines = map(json.loads, Path(output, "predictions.jsonl").read_text(encoding="utf-8").splitlines())
        return {line["question_id"]: line["text"] for line in lines}


@torch.inference_mode()
def plain_generation(loaded: tuple[Any, Any], benchmark: Benchmark, samples: Sequence[Sample]) -> dict[str, str]:
    """One question after the other through ``generate``."""
    model, processor = loaded
    texts = {}
    for sample in samples:
        messages = [[user_message(sample.prompt, len(sample.images))]]
        inputs = encode_prompts(processor, messages, [read_image(image).image for image in sample.images])
        output = model.generate(
            **inputs.to(model.device, dtype=model.dtype),
            do_sample=False,
            max_new_tokens=benchmark.max_new_tokens,
            **token_arguments(model, processor),
        )
        new = output[:, inputs["input_ids"].shape[1] :]
        texts[sample.id] = benchmark.answer(processor.batch_decode(new, skip_special_tokens=True)[0].strip())
    return texts


@torch.inference_mode()
def plain_likelihood(loaded: tuple[Any, Any], benchmark: Benchmark, samples: Sequence[Sample]) -> dict[str, str]:
    """One option after the other through the whole model, its mean loss by the model itself."""
    model, processor = loaded
    texts = {}
    for sample in samples:
        images = [read_image(image).image for image in sample.images]
        pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"].to(model.device, model.dtype)
        losses = []
        for option in sample.options:
            messages = [user_message(sample.prompt, len(images)), assistant_message(option)]
            row = {
                k: torch.tensor([v]) for k, v in encode_messages(messages, processor, processor.chat_template).items()
            }
            losses.append(model(**row, pixel_values=pixels, use_cache=False).loss.item())
        texts[sample.id] = sample.options[losses.index(min(losses))]
    return texts


def write_vqa(folder: Path, questions: int) -> None:
    """VQAv2's validation files about drawn images: the names of things and a relation, some five an image."""
    (folder / "val2014").mkdir(parents=True)
    asked: list[dict[str, Any]] = []
    for seed in range(questions):
        scene = make_scene("test", seed, CONFIG)
        scene.image.save(folder / "val2014" / f"COCO_val2014_{seed:012d}.jpg", quality=95, subsampling=0)
        rng = np.random.default_rng(seed)
        for question in [*naming_questions(scene, rng), *relation_questions(scene, rng)[:1]]:
            asked.append({"image_id": seed, "question": question.text, "answer": question.options[0]})
        if len(asked) >= questions:
            break
    records = [{"question_id": number, **record} for number, record in enumerate(asked[:questions])]
    ask = [{key: record[key] for key in ("question_id", "image_id", "question")} for record in records]
    answers = [
        {
            "question_id": record["question_id"],
            "image_id": record["image_id"],
            "answer_type": "other",
            "question_type": "what",
            "multiple_choice_answer": record["answer"],
            "answers": [{"answer": record["answer"], "answer_id": person} for person in range(1, 11)],
        }
        for record in records
    ]
    name = "v2_OpenEnded_mscoco_val2014_questions.json"
    (folder / name).write_text(json.dumps({"questions": ask}))
    (folder / "v2_mscoco_val2014_annotations.json").write_text(json.dumps({"annotations": answers}))


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{named}, {os.cpu_count()} cores"


if __name__ == "__main__":
    main()
