"""Scenes as files: LLaVA JSON to train on, a V* folder to score."""

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from llava_s2.files import new_folder
from llava_s2.synthetic.scene_questions import (
    Question,
    caption,
    color_questions,
    colored_thing_questions,
    conversation,
    naming_questions,
    relation_questions,
)
from llava_s2.synthetic.scenes import Scene, SceneConfig, Split, Thing, make_scene

Ask = Callable[[Scene, np.random.Generator], list[Question]]


def write_captions(folder: Path, count: int, *, config: SceneConfig, first_seed: int = 0) -> None:
    """Writes ``count`` images and ``train.json``, LLaVA records of one caption each, as stage 1 trains on."""

    def turns(scene: Scene, rng: np.random.Generator) -> list[dict[str, str]]:
        return [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": caption(scene)}]

    _write_llava(folder, count, config, first_seed, turns)


def write_instructions(folder: Path, count: int, *, config: SceneConfig, first_seed: int = 0) -> None:
    """Writes ``count`` images and ``train.json``, LLaVA records of several questions each, as stage 2 trains on."""

    def turns(scene: Scene, rng: np.random.Generator) -> list[dict[str, str]]:
        listed: list[dict[str, str]] = []
        for question in conversation(scene, rng):
            listed.append({"from": "human", "value": question.text if listed else "<image>\n" + question.text})
            listed.append({"from": "gpt", "value": question.answer})
        return listed

    _write_llava(folder, count, config, first_seed, turns)


def _write_llava(
    folder: Path,
    count: int,
    config: SceneConfig,
    first_seed: int,
    turns: Callable[[Scene, np.random.Generator], list[dict[str, str]]],
) -> None:
    with new_folder(folder) as target:
        records: list[dict[str, Any]] = []
        (target / "images").mkdir()
        for seed, scene, rng in _scenes("train", count, config, first_seed):
            name = f"images/{seed:06d}.jpg"
            save(scene.image, target / name)
            records.append({"id": f"scene-{seed:06d}", "image": name, "conversations": turns(scene, rng)})
        (target / "train.json").write_text(json.dumps(records, indent=1))


def write_vstar(folder: Path, attributes: int, relations: int, *, config: SceneConfig, first_seed: int = 0) -> None:
    """Writes a V* folder (``direct_attributes/``, ``relative_position/``: an image and a JSON file a question) of the
    test split, one question an image. Attributes are in turn: which of four things is there, the colour of a thing, and
    which thing has a colour. An image to which there is no such question is passed over; the next seed's takes its
    place. Format: the V* benchmark's release."""
    kinds: dict[str, list[tuple[str, Ask]]] = {
        "direct_attributes": [
            ("naming", naming_questions),
            ("color", color_questions),
            ("thing", colored_thing_questions),
        ],
        "relative_position": [("position", relation_questions)],
    }
    with new_folder(folder) as target:
        seeds = itertools.count(first_seed)
        for category, count in (("direct_attributes", attributes), ("relative_position", relations)):
            (target / category).mkdir()
            for i in tqdm(range(count), desc=f"drawing {category}", unit="image"):
                kind, ask = kinds[category][i % len(kinds[category])]
                questions: list[Question] = []
                while not questions:
                    seed = next(seeds)
                    scene, rng = make_scene("test", seed, config), np.random.default_rng([19, seed])
                    questions = ask(scene, rng)
                question = questions[int(rng.integers(len(questions)))]
                name = f"{kind}_{seed:06d}"
                save(scene.image, target / category / f"{name}.jpg")
                record = {
                    "target_object": [thing.name for thing in question.targets],
                    "bbox": [_xywh(thing) for thing in question.targets],
                    "question": question.text,
                    "options": list(question.options),
                }
                (target / category / f"{name}.json").write_text(json.dumps(record, indent=1))


def _xywh(thing: Thing) -> list[int]:
    left, top, right, bottom = thing.box
    return [left, top, right - left, bottom - top]


def save(image: Image.Image, path: Path) -> None:
    """Writes a JPEG of high quality, its colours at full resolution."""
    image.save(path, quality=92, subsampling=0)


def _scenes(
    split: Split, count: int, config: SceneConfig, first_seed: int
) -> Iterator[tuple[int, Scene, np.random.Generator]]:
    for seed in tqdm(range(first_seed, first_seed + count), desc=f"drawing {split} images", unit="image"):
        yield seed, make_scene(split, seed, config), np.random.default_rng([19, seed])
