"""The synthetic scenes show what their questions and captions say, and give nothing away."""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llava_s2.cli import main
from llava_s2.data.scene_tasks import attribute_questions, caption, relation_questions, write_vstar
from llava_s2.data.scenes import COLORS, KINDS, SceneConfig, make_scene, split_of_layout

# A kind whose silhouette covers the middle of its box, so that the pixel there has the object's colour.
SOLID = {"star", "heart", "fish", "car", "house", "bottle", "tree"}


def nearest_color(pixels: np.ndarray) -> str:
    mean = pixels.reshape(-1, 3).mean(0)
    return min(COLORS, key=lambda name: float(np.abs(mean - COLORS[name]).sum()))


def test_the_same_seed_gives_the_same_pixels_and_another_gives_others() -> None:
    first, again, other = make_scene("train", 5), make_scene("train", 5), make_scene("train", 6)
    assert first.objects == again.objects
    assert np.array_equal(np.asarray(first.image), np.asarray(again.image))
    assert not np.array_equal(np.asarray(first.image), np.asarray(other.image))


def test_the_image_shows_every_object_in_its_color_where_it_is_said_to_be() -> None:
    checked = 0
    for seed in range(60):
        scene = make_scene("test", seed)
        pixels = np.asarray(scene.image)
        for item in scene.objects:
            if item.kind in SOLID:
                checked += 1
                assert nearest_color(pixels[item.y - 1 : item.y + 1, item.x - 1 : item.x + 1]) == item.color
    assert checked > 100


def test_train_and_test_share_no_layout() -> None:
    config = SceneConfig()
    cell = config.side // config.cells
    layouts = {
        split: {
            tuple(sorted(o.y // cell * 8 + o.x // cell for o in make_scene(split, seed).objects)) for seed in range(80)
        }
        for split in ("train", "test")
    }
    assert not layouts["train"] & layouts["test"]
    for split, found in layouts.items():
        assert {split_of_layout(layout) for layout in found} == {split}


def test_colors_are_drawn_uniformly_and_independently_of_kinds() -> None:
    pairs = Counter((o.kind, o.color) for seed in range(1500) for o in make_scene("train", seed, TINY).objects)
    total, cells = sum(pairs.values()), len(KINDS) * len(COLORS)
    expected = total / cells
    chi_square = sum((pairs[k, c] - expected) ** 2 / expected for k in KINDS for c in COLORS)
    # Mean 95 and standard deviation 13.8 for a uniform draw.
    assert chi_square < 95 + 5 * 13.8


TINY = SceneConfig(side=80, object_side=(4, 6), clutter=0)


def test_questions_and_caption_agree_with_the_objects() -> None:
    for seed in range(40):
        scene, rng = make_scene("train", seed), np.random.default_rng(seed)
        by_kind = {item.kind: item for item in scene.objects}
        assert all(item.phrase in caption(scene).lower() for item in scene.objects)
        for question in attribute_questions(scene, rng):
            (kind,) = re.findall(r"of the (\w+)\?", question.text)
            assert question.options[0] == f"The color of the {kind} is {by_kind[kind].color}."
            assert len(set(question.options)) == 4
        for question in relation_questions(scene, rng):
            first, second = (by_kind[word] for word in re.findall(r"\w+", question.text) if word in by_kind)
            right = question.options[0]
            if "side" in question.text:
                assert ("left" in right) == (first.x < second.x) and abs(first.x - second.x) >= 336 / 8
            else:
                assert ("above" in right) == (first.y < second.y) and abs(first.y - second.y) >= 336 / 8


def test_the_right_relation_is_each_of_the_two_half_of_the_time() -> None:
    rights = Counter()
    for seed in range(400):
        questions = relation_questions(make_scene("test", seed, TINY), np.random.default_rng(seed))
        rights["left" in questions[0].options[0] or "above" in questions[0].options[0]] += 1
    # Binomial(400, 1/2): five standard deviations are 50.
    assert abs(rights[True] - 200) < 50


def test_vstar_folder_has_the_official_layout(tmp_path: Path) -> None:
    write_vstar(tmp_path / "v", 3, 2, config=SceneConfig())
    files = {
        category: sorted(p.name for p in (tmp_path / "v" / category).iterdir())
        for category in ("direct_attributes", "relative_position")
    }
    assert [len(names) for names in files.values()] == [6, 4]
    for path in (tmp_path / "v").glob("*/*.json"):
        record = json.loads(path.read_text())
        with Image.open(path.with_suffix(".jpg")) as image:
            assert image.size == (336, 336)
        assert {"question", "options", "target_object", "bbox"} <= record.keys()
        assert len(record["bbox"]) == len(record["target_object"])


@pytest.mark.parametrize("kind", ["captions", "instructions"])
def test_the_command_writes_llava_records(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "made"
    assert main(["data", "scenes", kind, str(folder), "--images", "3", "--object-side", "20", "24"]) == 0
    records = json.loads((folder / "train.json").read_text())
    assert len(records) == 3
    for record in records:
        assert (folder / record["image"]).is_file()
        assert [turn["from"] for turn in record["conversations"]][:2] == ["human", "gpt"]
        assert record["conversations"][0]["value"].startswith("<image>")
    assert main(["data", "scenes", kind, str(folder)]) == 2
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--object-side", "50", "60"], ["--objects", "1", "2"], ["--images", "0"]])
def test_impossible_scenes_are_refused(flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "scenes", "vstar", str(tmp_path / "v"), *flags]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "v").exists()


def test_every_question_of_position_is_drawn_even_if_two_objects_stand_close(tmp_path: Path) -> None:
    command = ["data", "scenes", "vstar", str(tmp_path / "v"), "--objects", "2", "2", "--images", "60"]
    assert main([*command, "--side", "64", "--object-side", "4", "5"]) == 0
    config = SceneConfig(64, (4, 5), (2, 2))
    names = sorted(path.stem for path in (tmp_path / "v" / "relative_position").glob("*.json"))
    assert len(names) == 60
    last = int(names[-1].rpartition("_")[2])
    assert last > 119  # some were left out, or the test would show nothing
    without = [
        f"scene_{seed:06d}"
        for seed in range(60, last)
        if not relation_questions(make_scene("test", seed, config), np.random.default_rng(0))
    ]
    assert len(without) == last - 119 and not set(without) & set(names)
