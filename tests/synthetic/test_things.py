"""The scenes show what their questions and captions say, and the text gives nothing away."""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llava_s2.cli import main
from llava_s2.synthetic.scene_files import write_instructions, write_vstar
from llava_s2.synthetic.scene_questions import (
    NOTHING,
    REFUSAL,
    caption,
    color_questions,
    colored_thing_questions,
    conversation,
    naming_questions,
    relation_questions,
)
from llava_s2.synthetic.scenes import SceneConfig, Split, make_scene, photographs
from llava_s2.synthetic.sprites import HELD_OUT_STYLE, STYLES, names_of
from llava_s2.synthetic.thing_names import COLORS, NAMES, TINTED

SMALL = SceneConfig(side=(160, 200), thing_share=(0.06, 0.1))


def test_the_same_seed_gives_the_same_pixels_and_another_gives_others() -> None:
    first, again, other = make_scene("train", 5, SMALL), make_scene("train", 5, SMALL), make_scene("train", 6, SMALL)
    assert first.things == again.things
    assert np.array_equal(np.asarray(first.image), np.asarray(again.image))
    assert first.things != other.things


def test_a_scene_at_another_size_shows_the_same_things_at_the_same_places() -> None:
    small, large = (make_scene("test", 3, SceneConfig(side=(side, side))) for side in (400, 1600))
    assert [thing.phrase for thing in small.things] == [thing.phrase for thing in large.things]
    for a, b in zip(small.things, large.things, strict=True):
        assert abs(4 * a.x - b.x) < 8 and abs(4 * a.y - b.y) < 8


def test_a_tinted_thing_has_its_color_in_the_image() -> None:
    config = SceneConfig(side=(800, 800), thing_share=(0.1, 0.12), styles=("fluent_flat",))
    right = count = 0
    for seed in range(12):
        scene = make_scene("train", seed, config)
        pixels = np.asarray(scene.image, float)
        for thing in scene.things:
            if thing.color and thing.name in ("balloon", "book"):
                middle = pixels[int(thing.y) - 4 : int(thing.y) + 4, int(thing.x) - 4 : int(thing.x) + 4].mean((0, 1))
                nearest = min(
                    COLORS, key=lambda name: float(np.abs(middle / max(middle) - np.array(COLORS[name]) / 250).sum())
                )
                right, count = right + (nearest == thing.color), count + 1
    assert count >= 2 and right == count


def test_train_and_test_share_no_photograph_and_no_style() -> None:
    from llava_s2.synthetic.scenes import STYLES_OF_SPLIT

    assert not set(photographs("train")) & set(photographs("test"))
    assert not set(STYLES_OF_SPLIT["train"]) & set(STYLES_OF_SPLIT["test"])
    assert HELD_OUT_STYLE not in STYLES
    assert all(name in NAMES for style in (*STYLES, HELD_OUT_STYLE) for name in names_of(style))


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_options_are_as_often_right_as_wrong_for_every_name(split: Split) -> None:
    """A guess from the text alone, that a name of one pool is likelier to be there than another, gains nothing."""
    right: Counter[bool] = Counter()
    wrong: Counter[bool] = Counter()
    for seed in range(50):
        scene, rng = make_scene(split, seed, SMALL), np.random.default_rng(seed)
        for question in naming_questions(scene, rng):
            pool = question.targets[0].name in TINTED
            right[pool] += 1
            for option in question.options[1:]:
                wrong[option.lower().rstrip(".").split()[-1] in TINTED] += 1
    for pool in (True, False):
        assert wrong[pool] == 3 * right[pool]


def test_questions_and_caption_agree_with_the_things() -> None:
    for seed in range(12):
        scene, rng = make_scene("train", seed, SMALL), np.random.default_rng(seed)
        by_name = {thing.name: thing for thing in scene.things}
        assert all(thing.phrase in caption(scene).lower() for thing in scene.things)
        for question in naming_questions(scene, rng):
            there = [option for option in question.options if option.lower().rstrip(".").split()[-1] in by_name]
            assert there == [question.answer] and len(set(question.options)) == 4
        for question in color_questions(scene, rng):
            (thing,) = question.targets
            assert question.answer == f"The color of the {thing.name} is {thing.color}."
            others = {other.color for other in scene.things if other.color and other is not thing}
            assert all(any(color in option for option in question.options[1:]) for color in sorted(others)[:1])
        for question in colored_thing_questions(scene, rng):
            assert by_name[question.answer[4:-1]].color == question.text[len("Which thing is ") : -1]
        for question in relation_questions(scene, rng):
            first, second = question.targets
            if "side" in question.text:
                assert ("left" in question.answer) == (first.x < second.x)
            else:
                assert ("above" in question.answer) == (first.y < second.y)


def test_conversations_ask_for_absent_things_as_often_as_for_present_ones() -> None:
    verdicts: Counter[str] = Counter()
    for seed in range(60):
        scene = make_scene("train", seed, SMALL)
        for question in conversation(scene, np.random.default_rng(seed)):
            if question.text.startswith("Is there"):
                name = question.text.split(" in the image")[0].split()[-1]
                assert question.answer.startswith("Yes") == (name in {thing.name for thing in scene.things})
                verdicts[question.answer[:2]] += 1
    assert 18 < verdicts["No"] < 42  # of 60 fair draws: 3 standard deviations


def test_what_is_there_is_asked_before_the_conversation_tells_it() -> None:
    for seed in range(40):
        scene = make_scene("train", seed, SMALL)
        said = ""
        for question in conversation(scene, np.random.default_rng(seed)):
            if question.text.startswith("Which of these"):
                assert question.targets[0].name not in said.split()
            elif question.text.startswith("Is there") and question.targets:
                assert question.targets[0].name not in re.findall(r"[a-z]+", said)
            elif question.text.startswith("Which thing is"):
                assert question.text[len("Which thing is ") : -1] not in said
            said += f" {question.answer.lower().rstrip('.')}"


def test_what_is_not_there_is_asked_about_in_the_words_of_what_is() -> None:
    """Color, place and relation, whose answer depends on the image and not on how it is asked."""
    there, lacking = Counter[str](), Counter[str]()
    for seed in range(240):
        scene = make_scene("train", seed, SMALL)
        present = {thing.name for thing in scene.things}
        for question in conversation(scene, np.random.default_rng(seed)):
            for start in ("What is the color of the ", "Where is the ", "Is the "):
                if question.text.startswith(start) and question.answer != REFUSAL:
                    name = question.text[len(start) :].split()[0].rstrip("?")
                    assert (question.answer == f"There is no {name} in the image.") == (name not in present)
                    (there if name in present else lacking)[start] += 1
                    assert name in TINTED or start != "What is the color of the "
    assert len(there) == 3 and all(there[start] / 40 < lacking[start] < there[start] for start in there)


def test_every_kind_of_question_is_also_asked_first() -> None:
    first = Counter[str]()
    for seed in range(240):
        question = conversation(make_scene("train", seed, SMALL), np.random.default_rng(seed))[0]
        first[re.sub(r"^(\w+ \w+).*", r"\1", question.text)] += 1
    kinds = ("Which of", "Is there", "What is", "Which thing", "Where is", "Is the", "How many", "Describe the")
    assert all(first[kind] >= 2 for kind in kinds)


def test_a_photograph_without_things_is_answered_so() -> None:
    for seed in range(12):
        scene = make_scene("train", seed, SceneConfig(side=(160, 200), empty=1.0))
        assert scene.things == () and caption(scene) == NOTHING
        for question in conversation(scene, np.random.default_rng(seed)):
            assert question.answer in (NOTHING, REFUSAL, "Zero.") or question.answer.startswith(
                ("No, ", "There is no ")
            )


def test_files_are_a_vstar_folder_and_llava_json(tmp_path: Path) -> None:
    write_instructions(tmp_path / "train", 2, config=SMALL)
    records = json.loads((tmp_path / "train/train.json").read_text())
    assert len(records) == 2
    for record in records:
        assert record["conversations"][0]["value"].startswith("<image>\n")
        assert (tmp_path / "train" / record["image"]).exists()
    write_vstar(tmp_path / "vstar", 3, 1, config=SMALL)
    for category, count in (("direct_attributes", 3), ("relative_position", 1)):
        images = sorted((tmp_path / "vstar" / category).glob("*.jpg"))
        assert len(images) == count
        for path in images:
            annotation = json.loads(path.with_suffix(".json").read_text())
            assert len(set(annotation["options"])) == len(annotation["options"]) >= 2
            with Image.open(path) as image:
                for left, top, width, height in annotation["bbox"]:
                    assert 0 <= left < left + width <= image.width and 0 <= top < top + height <= image.height


def test_the_command_writes_a_vstar_folder_and_names_bad_sizes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["data", "things", "vstar", str(tmp_path / "vstar"), "--images", "1", "--side", "200", "240"]
    assert main(words) == 0
    assert len(list((tmp_path / "vstar").rglob("*.jpg"))) == 2
    assert main(words) == 2 and "exists already" in capsys.readouterr().err
    assert main([*words[:3], str(tmp_path / "other"), "--side", "9", "8"]) == 2
    assert "9 to 8 px" in capsys.readouterr().err and not (tmp_path / "other").exists()
    assert main([*words[:3], str(tmp_path / "other"), "--first-seed", "-1"]) == 2
    assert "--first-seed -1" in capsys.readouterr().err and not (tmp_path / "other").exists()
