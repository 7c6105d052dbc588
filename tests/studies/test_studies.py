"""Every study at its smallest, by its command; stopped and started again; and told at once what is wrong."""

import json
import shutil
import subprocess
import sys

import numpy as np
from safetensors.torch import load_file, save_file

from llava_s2.cli import main
from llava_s2.studies.paper_tables import paper_information, paper_score

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


def test_a_tower_of_other_weights_needs_another_folder(towers, image_folder, tmp_path):
    """In processes of their own, as a user would run it before and after a training."""
    tower = tmp_path / "tower"
    shutil.copytree(towers[0], tower)
    command = [sys.executable, "-m", "llava_s2.cli", "study", "probe", tower, "--data", image_folder, "--scales", "32"]
    command += ["--fast", "--output", tmp_path / "out"]
    assert subprocess.run(command, capture_output=True).returncode == 0
    weights = load_file(tower / "model.safetensors")
    weights = {name: tensor * 1.01 for name, tensor in weights.items()}
    save_file(weights, tower / "model.safetensors", metadata={"format": "pt"})
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 2
    assert f"report.json: holds results of other weights of {tower}; name another --output" in again.stderr


def test_the_papers_scores_stand_beside_the_papers_towers():
    assert paper_score(5, "timm:vit_base_patch16_224.augreg_in21k", (224, 448)) == 81.1
    assert paper_score(6, "timm:vit_base_patch14_dinov2.lvd142m", (518, 1036, 1554)) == 56.9
    assert paper_score(7, "open_clip:ViT-H-14/laion2b_s32b_b79k", (504,)) == 0.3939
    assert paper_score(5, "open_clip:ViT-B-16/openai", (224,)) is None
    assert paper_score(5, "timm:vit_base_patch16_224.augreg_in21k", (224, 896)) is None
    names = [f"timm:vit_{size}_patch16_224.augreg_in21k" for size in ("base", "large")]
    assert paper_information(names[1], names[0], (224, 448)) == (0.521, 0.601)
