"""Questions about synthetic scenes, and the files that carry them: LLaVA JSON to train on, a V* folder to score.

The questions are V*'s two kinds: the attribute of a small object, and the relative position of two.
"""

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from llava_s2.data.scenes import COLORS, Scene, SceneConfig, SceneObject, Split, make_scene

_MOST_OPTIONS = 4
# Two objects stand beside each other when they are apart by this share of the image's side.
_CLEARLY_APART = 1 / 8


@dataclass(frozen=True)
class Question:
    """A question with its options, the correct one first (the V* convention), and the objects it is about."""

    text: str
    options: tuple[str, ...]
    targets: tuple[SceneObject, ...]


def caption(scene: Scene) -> str:
    """Names every object, in reading order of a grid of 8 x 8: ``A red star, a white cup and an orange key.``"""
    cell = scene.image.width // 8
    phrases = [item.phrase for item in sorted(scene.objects, key=lambda item: (item.y // cell, item.x))]
    text = ", ".join(phrases[:-1]) + " and " + phrases[-1] if len(phrases) > 1 else phrases[0]
    return text[0].upper() + text[1:] + "."


def attribute_questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """The colour of each object, beside three others drawn from all colours."""
    questions = []
    for item in scene.objects:
        wrong = rng.permutation([color for color in COLORS if color != item.color]).tolist()[: _MOST_OPTIONS - 1]
        options = tuple(f"The color of the {item.kind} is {color}." for color in (item.color, *wrong))
        questions.append(Question(f"What is the color of the {item.kind}?", options, (item,)))
    return questions


def relation_questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Left or right, above or below: a question for each pair and axis on which the two are clearly apart, shuffled."""
    margin = scene.image.width * _CLEARLY_APART
    questions = []
    for first in scene.objects:
        for second in scene.objects:
            if first is second:
                continue
            pair = f"The {first.kind} is {{}} the {second.kind}."
            if abs(first.x - second.x) >= margin:
                sides = ["on the left side of", "on the right side of"][:: 1 if first.x < second.x else -1]
                text = f"Is the {first.kind} on the left or right side of the {second.kind}?"
                questions.append(Question(text, tuple(pair.format(side) for side in sides), (first, second)))
            if abs(first.y - second.y) >= margin:
                sides = ["above", "below"][:: 1 if first.y < second.y else -1]
                text = f"Is the {first.kind} above or below the {second.kind}?"
                questions.append(Question(text, tuple(pair.format(side) for side in sides), (first, second)))
    return [questions[i] for i in rng.permutation(len(questions))]


def write_captions(folder: Path, count: int, *, config: SceneConfig, first_seed: int = 0) -> None:
    """Writes ``count`` images and ``train.json``, LLaVA records of one caption each, as stage 1 trains on."""

    def conversation(scene: Scene, rng: np.random.Generator) -> list[dict[str, str]]:
        return [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": caption(scene)}]

    _write_llava(folder, count, config, first_seed, conversation)


def write_instructions(
    folder: Path, count: int, *, config: SceneConfig, first_seed: int = 0, relations: int = 1
) -> None:
    """Writes ``count`` images and ``train.json``, LLaVA records of several questions on an image, as stage 2 trains
    on: the colour of every object and ``relations`` questions on two of them, in random order."""

    def conversation(scene: Scene, rng: np.random.Generator) -> list[dict[str, str]]:
        questions = attribute_questions(scene, rng) + relation_questions(scene, rng)[:relations]
        turns: list[dict[str, str]] = []
        for i in rng.permutation(len(questions)).tolist():
            turns.append({"from": "human", "value": questions[i].text if turns else "<image>\n" + questions[i].text})
            turns.append({"from": "gpt", "value": questions[i].options[0]})
        return turns

    _write_llava(folder, count, config, first_seed, conversation)


def _write_llava(
    folder: Path,
    count: int,
    config: SceneConfig,
    first_seed: int,
    conversation: Callable[[Scene, np.random.Generator], list[dict[str, str]]],
) -> None:
    def fill(target: Path) -> None:
        records: list[dict[str, Any]] = []
        (target / "images").mkdir()
        for seed, scene, rng in _scenes("train", count, config, first_seed):
            name = f"images/{seed:06d}.png"
            scene.image.save(target / name, compress_level=1)
            records.append({"id": f"scene-{seed:06d}", "image": name, "conversations": conversation(scene, rng)})
        (target / "train.json").write_text(json.dumps(records, indent=1))

    _write_folder(folder, fill)


def write_vstar(folder: Path, attributes: int, relations: int, *, config: SceneConfig, first_seed: int = 0) -> None:
    """Writes a V* folder (``direct_attributes/``, ``relative_position/``: an image and a JSON file a question) of the
    test split, one question an image. An image on which no two objects are clearly apart gets no question of
    position; the next seed's takes its place. Format: the V* benchmark's release."""

    def fill(target: Path) -> None:
        for offset, count, category, ask in (
            (0, attributes, "direct_attributes", attribute_questions),
            (attributes, relations, "relative_position", relation_questions),
        ):
            (target / category).mkdir()
            for seed, scene, rng in _scenes("test", count, config, first_seed + offset, needs=ask):
                questions = ask(scene, rng)
                question = questions[int(rng.integers(len(questions)))]
                name = f"scene_{seed:06d}"
                scene.image.save(target / category / f"{name}.jpg", quality=95, subsampling=0)
                boxes = [[o.x - o.side // 2, o.y - o.side // 2, o.side, o.side] for o in question.targets]
                record = {
                    "target_object": [o.kind for o in question.targets],
                    "bbox": boxes,
                    "question": question.text,
                    "options": list(question.options),
                }
                (target / category / f"{name}.json").write_text(json.dumps(record, indent=1))

    _write_folder(folder, fill)


def _scenes(
    split: Split,
    count: int,
    config: SceneConfig,
    first_seed: int,
    needs: Callable[[Scene, np.random.Generator], list[Question]] | None = None,
) -> Iterator[tuple[int, Scene, np.random.Generator]]:
    """``count`` images from ``first_seed`` on, past those to which ``needs`` has no question."""
    seeds = itertools.count(first_seed)
    for _ in tqdm(range(count), desc=f"drawing {split} images", unit="image"):
        scene = make_scene(split, seed := next(seeds), config)
        while needs is not None and not needs(scene, np.random.default_rng(0)):
            scene = make_scene(split, seed := next(seeds), config)
        yield seed, scene, np.random.default_rng([19, seed])


def _write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Lets ``fill`` write into a folder beside the destination, which then appears whole or not at all."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    fill(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
