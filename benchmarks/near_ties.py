"""Does ``near_ties`` count every answer that another batch size changes in half precision?

    python benchmarks/near_ties.py --output benchmarks/results/near_ties.json

The embedded default in bfloat16 answers questions about drawn images one at a time and eight at once, and in float32;
and ranks four replies to each, one question and five questions (about one image) at a time. Told are, of each pair of
runs, the answers that differ, those of them that the first run does not count as near ties, and how many it counts.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from evaluation import write_vqa

from llava_s2.data.image_decoding import open_image
from llava_s2.eval.benchmark import Sample
from llava_s2.eval.generation import answers
from llava_s2.eval.vqav2 import VQAv2
from llava_s2.formats.model_source import ModelSource
from llava_s2.model.inference import ImageTensors, prepare_image
from llava_s2.model.option_ranking import rank_options

REPLIES = ("It is red.", "It is blue.", "It is on the left side.", "It is on the right side.")
Run = list[tuple[Any, bool]]
"""Of each question the answer, and whether it is counted as a near tie."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--questions", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--new-tokens", type=int, default=12, help="of an answer, at most (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args()
    half, full = (ModelSource("embedded", dtype=dtype).load() for dtype in ("bfloat16", "float32"))
    with tempfile.TemporaryDirectory() as folder:
        write_vqa(Path(folder, "vqa"), args.questions)
        samples = VQAv2().load(Path(folder, "vqa"), "generate")
        paths = dict.fromkeys(image for sample in samples for image in sample.images)
        images = {path: prepare_image(half[1], open_image(path)) for path in paths}
    shown = [tuple(images[image] for image in sample.images) for sample in samples]
    print("images drawn", flush=True)
    generated = {
        name: generate(loaded, samples, shown, size, args.new_tokens)
        for name, loaded, size in (("one at a time", half, 1), ("eight at once", half, 8), ("float32", full, 8))
    }
    print("answers generated", flush=True)
    ranked = {
        name: rank(loaded, samples, shown, together)
        for name, loaded, together in (
            ("one at a time", half, False),
            ("five at once", half, True),
            ("float32", full, True),
        )
    }
    report = {
        "command": f"python benchmarks/near_ties.py --questions {args.questions} --new-tokens {args.new_tokens}",
        "generation": compared(generated),
        "likelihood": compared(ranked),
        "torch": torch.__version__,
    }
    text = json.dumps(report, indent=2)
    print(text)
    if args.output:
        args.output.write_text(text + "\n", encoding="utf-8")


def generate(loaded: Any, samples: Sequence[Sample], shown: Sequence[ImageTensors], size: int, new_tokens: int) -> Run:
    found: Run = []
    for start in range(0, len(samples), size):
        part = slice(start, start + size)
        prompts = [sample.prompt for sample in samples[part]]
        found += [(answer.text, answer.near_tie) for answer in answers(*loaded, shown[part], prompts, new_tokens)]
    return found


def rank(loaded: Any, samples: Sequence[Sample], shown: Sequence[ImageTensors], together: bool) -> Run:
    places: dict[int, list[int]] = {}
    for number, images in enumerate(shown):
        places.setdefault(id(images[0]) if together else number, []).append(number)
    found: dict[int, tuple[Any, bool]] = {}
    for numbers in places.values():
        questions = [(samples[number].prompt, REPLIES) for number in numbers]
        for number, ranking in zip(numbers, rank_options(*loaded, shown[numbers[0]], questions), strict=True):
            found[number] = ranking.losses.index(min(ranking.losses)), ranking.near_tie
    return [found[number] for number in range(len(samples))]


def compared(runs: dict[str, Run]) -> dict[str, Any]:
    """Each half-precision run with each other run."""
    pairs = [(a, b) for a in runs for b in runs if a != b and a != "float32"]
    return {
        "answers": len(next(iter(runs.values()))),
        "counted": {name: sum(tie for _, tie in run) for name, run in runs.items() if name != "float32"},
        "differ": {f"{a}, {b}": sum(x[0] != y[0] for x, y in zip(runs[a], runs[b], strict=True)) for a, b in pairs},
        "not counted": {
            f"{a}, {b}": sum(x[0] != y[0] and not x[1] for x, y in zip(runs[a], runs[b], strict=True)) for a, b in pairs
        },
    }


if __name__ == "__main__":
    main()
