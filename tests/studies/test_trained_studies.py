"""The studies that train more than a linear map, at their smallest; one of them stopped and gone on with."""

import json
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from llava_s2.cli import main


def study(*arguments):
    return main(["study", *map(str, arguments)])


def rows(folder):
    report = json.loads((folder / "report.json").read_text())
    assert (folder / "report.md").read_text().startswith("# llava-s2 study")
    assert (folder / f"{report['study']}.png").stat().st_size > 5000
    return report["rows"]


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    """Four scenes to learn from and two to test on, with masks and depths: the left half is near, or the right."""
    folder = tmp_path_factory.mktemp("rooms")
    for split, word, count in (("train", "training", 4), ("val", "validation", 2)):
        for place in (f"images/{word}", f"annotations/{word}", f"{split}/images", f"{split}/depths"):
            (folder / place).mkdir(parents=True)
        for number in range(count):
            left = number % 2 == 0
            mask = np.full((48, 64), 1, np.uint8)
            mask[:, :32] = 2 if left else 1
            mask[:, 32:] = 1 if left else 2
            image = Image.fromarray(np.where(mask[..., None] == 2, [220, 30, 30], [20, 60, 200]).astype(np.uint8))
            for place in (f"images/{word}", f"{split}/images"):
                image.save(folder / place / f"{number}.png")
            Image.fromarray(mask).save(folder / f"annotations/{word}/{number}.png")
            Image.fromarray(np.where(mask == 2, 1500, 4000).astype(np.uint16)).save(
                folder / f"{split}/depths/{number}.png"
            )
    return folder


DENSE = ["--scales", "32", "--scales", "32,64", "--rate", "0.02", "--batch-size", "4"]


def test_segment_with_a_linear_head(towers, rooms, tmp_path):
    assert study("segment", towers[0], "--data", rooms, *DENSE, "--head", "linear", "--output", tmp_path) == 0
    assert all(row["mIoU %"] > 60 for row in rows(tmp_path))  # all of one class would be 25


@pytest.mark.parametrize("head", ["upernet", "mask2former"])
def test_segment_with_the_heads_of_transformers(towers, rooms, tmp_path, head):
    options = ("--scales", "32,64", "--epochs", 1, "--batch-size", 4, "--no-split", "--merge", "add")
    assert study("segment", towers[0], "--data", rooms, *options, "--head", head, "--output", tmp_path) == 0
    assert 0 <= rows(tmp_path)[0]["mIoU %"] <= 100
    assert rows(tmp_path)[0]["scales"] == "32², 64², whole images, added"


@pytest.mark.parametrize(("head", "rate"), [("linear", 0.02), ("vpd", 0.003)])
def test_depth(towers, rooms, tmp_path, head, rate):
    command = ("depth", towers[0], "--data", rooms, "--scales", "32,64", "--batch-size", 4, "--rate", rate)
    assert study(*command, "--epochs", 60, "--head", head, "--output", tmp_path) == 0
    assert rows(tmp_path)[0]["RMSE m"] < 1.2  # the best constant has 1.25


VIT = ["--scales", "16", "--scales", "16,32", "--width", "24", "--depth", "1", "--patch", "8", "--batch-size", "8"]


def test_memorize_stopped_and_gone_on_with(image_folder, tmp_path, monkeypatch):
    command = ("memorize", "--data", image_folder, *VIT, "--epochs", 3)
    assert study(*command, "--output", tmp_path / "whole") == 0
    whole = rows(tmp_path / "whole")
    assert [row["model"] for row in whole] == ["base", "base", "large"]
    assert whole[2]["parameters"] > 2 * whole[0]["parameters"]

    with stopped_after(12, monkeypatch):  # in the second row
        assert study(*command, "--output", tmp_path / "stopped") == 130
    assert study(*command, "--output", tmp_path / "stopped") == 0
    assert rows(tmp_path / "stopped") == whole


def test_a_stopped_training_is_gone_on_with_by_its_like_alone(towers, rooms, tmp_path, monkeypatch):
    shared = ("--scales", "32", "--batch-size", 4, "--head", "linear", "--rate", 0.02, "--data", rooms)
    cache = ("--cache", tmp_path / "cache")
    with stopped_after(3, monkeypatch):
        assert study("depth", towers[0], *shared, *cache, "--epochs", 9, "--output", tmp_path / "stopped") == 130
    assert list((tmp_path / "cache").glob("depth-*.pt"))
    for name, flags in (("segment", ("--epochs", 9)), ("depth", ("--epochs", 5)), ("depth", ("--epochs", 9))):
        command = (name, towers[0], *shared, *flags)
        assert study(*command, *cache, "--output", tmp_path / "shared" / name / str(flags[1])) == 0
        assert study(*command, "--output", tmp_path / "alone" / name / str(flags[1])) == 0
        assert rows(tmp_path / "shared" / name / str(flags[1])) == rows(tmp_path / "alone" / name / str(flags[1]))
    assert not list((tmp_path / "cache").glob("depth-*.pt"))


def test_a_folder_of_results_is_of_one_truth_and_one_output_scale(towers, rooms, tmp_path, capsys):
    data = tmp_path / "rooms"
    shutil.copytree(rooms, data)
    scales = ("--scales", "32,64", "--epochs", 1, "--batch-size", 4, "--head", "linear")
    command = ("segment", towers[0], "--data", data, *scales, "--output", tmp_path / "out")
    assert study(*command) == 0
    assert study(*command, "--output-scale", 64) == 2
    assert "holds results of another setting (features on the grid of was the first scale" in capsys.readouterr().err
    mask = data / "annotations/validation/0.png"
    Image.fromarray(3 - np.asarray(Image.open(mask))).save(mask)
    assert study(*command) == 2
    assert "holds results of another setting (content was" in capsys.readouterr().err
    assert study(*command[:-1], tmp_path / "other", "--output-scale", 48) == 2
    assert "--output-scale 48: is none of the --scales" in capsys.readouterr().err


@contextmanager
def stopped_after(steps, monkeypatch):
    """Ctrl-C at the end of a step of a training that saves after each."""
    from llava_s2.studies import training_loop

    torch_save = training_loop.torch.save
    written = []

    def stop(*arguments, **options):
        torch_save(*arguments, **options)
        written.append(1)
        if len(written) == steps:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training_loop, "_SAVE_SECONDS", 0)
        patch.setattr(training_loop.torch, "save", stop)
        yield


def test_pretrain(image_folder, tmp_path):
    assert study("pretrain", "--data", image_folder, *VIT, "--epochs", 4, "--output", tmp_path) == 0
    assert [(row["model"], row["scales"]) for row in rows(tmp_path)] == [
        ("base", "16²"),
        ("large", "16²"),
        ("base, S2 after", "16², 32²"),
        ("base, S2 before", "16², 32²"),
    ]
