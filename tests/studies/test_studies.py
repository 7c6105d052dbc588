"""Every study at its smallest, by its command; stopped and started again; and told at once what is wrong."""

import json

import h5py
import numpy as np
import pytest
from PIL import Image

from llava_s2.cli import main
from llava_s2.studies.paper_tables import paper_information, paper_score
from llava_s2.studies.simulator import Simulator

SCALES = ["--scales", "32", "--scales", "32,64", "--crop", "1"]


def study(*arguments):
    return main(["study", *map(str, arguments)])


def rows(folder):
    report = json.loads((folder / "report.json").read_text())
    assert (folder / "report.md").read_text().startswith("# llava-s2 study")
    assert (folder / f"{report['study']}.png").stat().st_size > 5000
    return report["rows"]


def test_reconstruct(towers, image_folder, tmp_path, capsys):
    small, large = towers
    command = ("reconstruct", small, "--target", large, "--bound", large, "--data", image_folder, *SCALES)
    assert study(*command, "--output", tmp_path) == 0
    single, multi, bound = rows(tmp_path)
    assert (bound["role"], bound["train ratio %"]) == ("bound", 100)
    assert bound["test info"] > 10  # a tower holds all of itself
    assert single["train info"] < multi["train info"] < bound["train info"]  # half of multi's input is single's
    assert "Use 3000 or more" in capsys.readouterr().out
    # Started again, it computes nothing anew; with another setting it wants another folder.
    (tmp_path / "features").rename(tmp_path / "moved")
    assert study(*command, "--output", tmp_path) == 0
    assert not (tmp_path / "features").exists()
    assert study(*command, "--output", tmp_path, "--seed", 1) == 2
    assert "holds results of another setting (seed was 0, now 1)" in capsys.readouterr().err


def test_probe_with_what_the_larger_tower_gains(towers, image_folder, tmp_path):
    command = ("probe", *towers, "--data", image_folder, *SCALES, "--fast", "--hard", towers[1])
    assert study(*command, "--output", tmp_path) == 0
    found = rows(tmp_path)
    assert len(found) == 4
    assert all(row["accuracy %"] > 60 for row in found)  # three colours: 33 % by chance
    assert all(row["paper's accuracy %"] is None for row in found)
    assert (tmp_path / "hard.tsv").read_text().startswith("image\tclass\t")


def test_probe_by_sgd_over_seeds(towers, image_folder, tmp_path):
    command = ("probe", towers[0], "--data", image_folder, "--scales", "32", "--rate", 0.05, "--batch-size", 8)
    assert study(*command, "--output", tmp_path, "--seeds", 2) == 0
    first, second = rows(tmp_path)
    assert first["train loss"] != second["train loss"]
    assert max(first["train loss"], second["train loss"]) < 0.9 * np.log(3)


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


@pytest.mark.parametrize("head", ["linear", "vpd"])
def test_depth(towers, rooms, tmp_path, head):
    assert study("depth", towers[0], "--data", rooms, *DENSE, "--head", head, "--output", tmp_path) == 0
    assert all(row["RMSE m"] < 1.2 for row in rows(tmp_path))  # the best constant has 1.25


VIT = ["--scales", "16", "--scales", "16,32", "--width", "24", "--depth", "1", "--patch", "8", "--batch-size", "8"]


def test_memorize_stopped_and_gone_on_with(image_folder, tmp_path, monkeypatch):
    command = ("memorize", "--data", image_folder, *VIT, "--epochs", 3)
    assert study(*command, "--output", tmp_path / "whole") == 0
    whole = rows(tmp_path / "whole")
    assert [row["model"] for row in whole] == ["base", "base", "large"]
    assert whole[2]["parameters"] > 2 * whole[0]["parameters"]

    from llava_s2.studies import training_loop

    monkeypatch.setattr(training_loop, "_SAVE_SECONDS", 0)
    written = []

    def stop(*arguments, **options):
        torch_save(*arguments, **options)
        written.append(1)
        if len(written) == 12:  # in the second row
            raise KeyboardInterrupt

    torch_save = training_loop.torch.save
    monkeypatch.setattr(training_loop.torch, "save", stop)
    assert study(*command, "--output", tmp_path / "stopped") == 130
    assert study(*command, "--output", tmp_path / "stopped") == 0
    assert rows(tmp_path / "stopped") == whole


def test_pretrain(image_folder, tmp_path):
    assert study("pretrain", "--data", image_folder, *VIT, "--epochs", 4, "--output", tmp_path) == 0
    assert [(row["model"], row["scales"]) for row in rows(tmp_path)] == [
        ("base", "16²"),
        ("large", "16²"),
        ("base, S2 after", "16², 32²"),
        ("base, S2 before", "16², 32²"),
    ]


def test_robot_imitates_demonstrations_of_robomimics_layout(towers, tmp_path):
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "demos.hdf5", "w") as file:
        for number in range(4):
            demo = file.create_group(f"data/demo_{number}")
            position = np.cumsum(rng.normal(size=(20, 3)), axis=0)
            demo["actions"] = np.tanh(position)
            demo["obs/robot0_eef_pos"] = position
            demo["obs/object"] = rng.normal(size=(20, 7))
            demo["obs/agentview_image"] = rng.integers(0, 255, (20, 40, 40, 3), dtype=np.uint8)
    command = ("robot", towers[0], "--demos", tmp_path / "demos.hdf5", "--scales", "32,64", "--epochs", 12)
    assert study(*command, "--output", tmp_path / "out") == 0
    assert rows(tmp_path / "out")[0]["held-out action error"] < 1.0  # of the mean action: 1


def test_robot_in_the_simulator(towers, tmp_path):
    command = ("robot", towers[0], "--scales", "32", "--demonstrations", 2, "--positions", 1, "--epochs", 1)
    assert study(*command, "--output", tmp_path) == 0
    row = rows(tmp_path)[0]
    assert row["picked up"] in ("0 of 1", "1 of 1")
    assert Image.open(tmp_path / row["video"]).n_frames > 2


def test_the_expert_picks_the_cube_up():
    with Simulator(32) as simulator:
        for position in (3, 4):
            simulator.reset(position)
            assert any(simulator.step(simulator.expert())[1] for _ in range(40))


def test_wrong_commands_are_told_before_any_work(towers, image_folder, tmp_path, capsys):
    out = ("--output", tmp_path / "out")
    for command, told in (
        (("probe", towers[0], *out), "name the folder of images with --data"),
        (("probe", "--data", image_folder, *out), "name a tower"),
        (("probe", towers[0], "--data", tmp_path / "no", *out), "there is no such folder; name one with --data"),
        (("probe", towers[0], "--scales", "32,80", "--data", image_folder, *out), "80 is no whole multiple of 32"),
        (("probe", str(tmp_path), "--data", image_folder, *out), "no such folder or reachable hub id"),
        (("reconstruct", towers[0], "--scales", "32", "--data", image_folder, *out), "with --target"),
        (("robot", towers[0], "--scales", "32", "--demos", image_folder, *out), "is not HDF5 in robomimic's layout"),
    ):
        assert study(*command) == 2
        assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_papers_scores_stand_beside_the_papers_towers():
    assert paper_score(5, "timm:vit_base_patch16_224.augreg_in21k", (224, 448)) == 81.1
    assert paper_score(6, "timm:vit_base_patch14_dinov2.lvd142m", (518, 1036, 1554)) == 56.9
    assert paper_score(7, "open_clip:ViT-H-14/laion2b_s32b_b79k", (504,)) == 0.3939
    assert paper_score(5, "open_clip:ViT-B-16/openai", (224,)) is None
    assert paper_score(5, "timm:vit_base_patch16_224.augreg_in21k", (224, 896)) is None
    names = [f"timm:vit_{size}_patch16_224.augreg_in21k" for size in ("base", "large")]
    assert paper_information(names[1], names[0], (224, 448)) == (0.521, 0.601)
