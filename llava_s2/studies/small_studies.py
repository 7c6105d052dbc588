"""``llava-s2 study all --small``: every study on small real data out of packages; the numbers of docs/studies.md."""

import argparse
import subprocess
import sys
from pathlib import Path

from llava_s2.errors import InputError
from llava_s2.files import atomic_write, new_folder
from llava_s2.studies.small_data import photographs, write_crops, write_digits
from llava_s2.studies.small_summary import summarize
from llava_s2.studies.small_towers import efficientnet_lite

_SEEDS = 3


def run_all(args: argparse.Namespace) -> None:
    """Runs the studies one after the other; what is there already is not computed again.

    Every study has a folder in ``args.output``. Studies of data that chance makes have one for each of three seeds.
    ``summary.md`` and ``summary.png`` there show them all.

    Raises:
        InputError: a package that holds data or a simulator is not installed.
    """
    output: Path = args.output
    data, towers = output / "data", output / "towers"
    lite0, lite1, lite2 = (efficientnet_lite(number, towers) for number in range(3))
    wanted = args.only or ["reconstruct", "probe", "segment", "depth", "memorize", "pretrain", "robot"]

    def study(name: str, folder: str, *arguments: str | Path) -> None:
        if name in wanted:
            args.main(["study", name, *map(str, arguments), "--output", str(output / folder)])

    for seed in range(_SEEDS):
        if "reconstruct" in wanted:
            crops = write_crops(data / f"crops-{seed}", {"train": 150, "val": 50}, 224, seed)
            study(
                "reconstruct", f"reconstruct-{seed}", lite0, "--target", lite1, "--bound", lite2, "--data", crops,
                "--crop", "1", "--seed", str(seed),
            )  # fmt: skip
        if "probe" in wanted:
            digits = write_digits(data / f"digits-{seed}", {"train": 400, "val": 300}, 224, (24, 48), seed)
            study("probe", f"probe-{seed}", lite0, "--data", digits, "--crop", "1", "--fast", "--seed", str(seed))
    if {"segment", "depth"} & set(wanted):
        rooms = write_rooms(data / "rooms", 120, 50)
        dense = ("--data", rooms, "--cache", output / "rooms-features", "--head", "linear", "--rate", "0.003",
                 "--seeds", str(_SEEDS))  # fmt: skip
        # With 224,448 alone three seeds gain 4.6 points, too few to tell from none.
        smaller_too = ("--scales", "224", "--scales", "112,224,448", "--output-scale", "224")
        study("segment", "segment", lite0, *dense, *smaller_too)
        study("depth", "depth", lite0, *dense)
    vit = ("--scales", "48", "--scales", "48,96", "--crop", "1", "--width", "96", "--depth", "3")
    if "memorize" in wanted:
        crops = write_crops(data / "memorize", {"train": 400}, 48, 0)
        study("memorize", "memorize", "--data", crops, *vit, "--seeds", str(_SEEDS))
    if "pretrain" in wanted:
        digits = write_digits(data / "pretrain", {"train": 1000, "val": 400}, 48, (12, 20), 0)
        study("pretrain", "pretrain", "--data", digits, *vit, "--seeds", str(_SEEDS))
    study(
        "robot", "robot", lite0, "--scales", "112", "--scales", "112,224", "--demonstrations", "40", "--seeds",
        str(_SEEDS),
    )  # fmt: skip
    print(summarize(output))


def write_rooms(folder: Path, train: int, val: int, side: int = 448, seed: int = 0) -> Path:
    """Rendered rooms (see `render_rooms`) with photographs as textures, other ones for testing."""
    if folder.exists():
        return folder
    textures = folder.with_name("textures")
    found = photographs()
    left = {split: list(images) for split, images in found.items()}
    for number in range(sum(map(len, left.values()))):
        image = left["val" if number % 3 == 2 else "train"].pop(0)
        extent = min(image.size)
        with atomic_write(textures / f"{number:02d}.png") as partial:
            image.crop((0, 0, extent, extent)).resize((256, 256)).save(partial)
    files = sorted(map(str, textures.glob("*.png")))
    program = [sys.executable, "-m", "llava_s2.studies.render_rooms"]
    with new_folder(folder) as scratch:
        done = subprocess.run([*program, str(scratch), str(train), str(val), str(side), str(seed), *files])
        if done.returncode:
            raise InputError(
                f"{folder}: the rooms could not be rendered; that needs pip install 'llava-s2[studies]' and EGL "
                "(Debian: libegl1 libgl1-mesa-dri) or MUJOCO_GL=osmesa"
            )
    return folder
