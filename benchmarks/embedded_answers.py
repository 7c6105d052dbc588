"""What the embedded default writes, by kind of question, each asked alone about a held-out photograph.

    python benchmarks/embedded_answers.py --output benchmarks/results/embedded_answers.json [--model embedded]

Greedy answers in float32. Right is what the generator of the images says, word for word; of a description, how many of
the names that it should have it has (recall), and how many of those that it has it should (precision).
"""

import argparse
import json
import re
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from llava_s2.eval.generation import answers
from llava_s2.eval.statistics import wilson_interval
from llava_s2.formats.model_source import ModelSource
from llava_s2.model.inference import prepare_image
from llava_s2.synthetic.scene_questions import (
    REFUSAL,
    absent_color_question,
    caption,
    color_questions,
    colored_thing_questions,
    naming_questions,
    neighbour_questions,
    place_questions,
    presence_question,
    relation_questions,
)
from llava_s2.synthetic.scenes import Scene, SceneConfig, make_scene
from llava_s2.synthetic.thing_names import NAMES

DESCRIPTION = "What small things are in the image?"


def questions(scene: Scene, rng: np.random.Generator) -> list[tuple[str, str, str]]:
    """Kind, question and right answer."""
    kinds = {
        "which of four is there": naming_questions(scene, rng),
        "color": color_questions(scene, rng),
        "which thing has a color": colored_thing_questions(scene, rng),
        "left or right, above or below": relation_questions(scene, rng),
        "what is beside it": neighbour_questions(scene, rng),
        "where": place_questions(scene),
    }
    found = []
    for kind, listed in kinds.items():
        if listed:
            question = listed[int(rng.integers(len(listed)))]
            found.append((kind, question.text, question.answer))
    there, (no, neither) = scene.alone()[0], scene.absent(True, rng)[:2]
    alone = {
        "is it there: yes": presence_question(there.name, there),
        "is it there: no": presence_question(no, None),
        "color of what is not there": absent_color_question(neither),
    }
    found += [(kind, question.text, question.answer) for kind, question in alone.items()]
    return [
        *found,
        ("what it does not know", "What is written on the wall?", REFUSAL),
        ("description", DESCRIPTION, caption(scene)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--images", type=int, default=60, help="photographs (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args()

    model, processor = ModelSource(args.model, dtype="float32").load()
    right: dict[str, list[float]] = defaultdict(list)
    refused: dict[str, int] = defaultdict(int)
    for seed in tqdm(range(60_000, 60_000 + args.images), unit="image"):
        scene = make_scene("test", seed, SceneConfig(side=(1000, 1400)))
        image = prepare_image(processor, scene.image)
        asked = questions(scene, np.random.default_rng(seed))
        alone = make_scene("test", seed, SceneConfig(side=(1000, 1400), empty=1))
        shown = [image] * len(asked) + [prepare_image(processor, alone.image)]
        asked.append(("a photograph alone", "What is in this image?", caption(alone)))
        said = answers(model, processor, [(one,) for one in shown], [text for _, text, _ in asked], 48)
        for (kind, text, answer), told in zip(asked, said, strict=True):
            refused[kind] += told.text.strip() == REFUSAL
            if text == DESCRIPTION:
                expected, named = (set(re.findall(r"\w+", line.lower())) & set(NAMES) for line in (answer, told.text))
                right["description: recall"].append(len(expected & named) / len(expected))
                right["description: precision"].append(len(expected & named) / max(1, len(named)))
            else:
                right[kind].append(told.text.strip() == answer)
    report: dict = {"command": f"python benchmarks/embedded_answers.py {' '.join(sys.argv[1:])}".strip(), "kinds": {}}
    for kind, grades in right.items():
        low, high = wilson_interval(sum(grades), len(grades))
        report["kinds"][kind] = {
            "right": round(100 * sum(grades) / len(grades), 1),
            "interval": [round(100 * low, 1), round(100 * high, 1)],
            "refused": round(100 * refused[kind] / len(grades), 1),
            "count": len(grades),
        }
    text = json.dumps(report, indent=2)
    print(text)
    if args.output:
        args.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
