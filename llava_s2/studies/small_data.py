"""Small real data without a download: photographs and handwritten digits inside installed Python packages."""

import csv
import gzip
import importlib.util
import random
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from llava_s2.errors import InputError
from llava_s2.files import new_folder

# Package and place in it. Every third, in this order, is for testing alone.
_PHOTOGRAPHS = (
    ("skimage", "data/astronaut.png"),
    ("skimage", "data/chelsea.png"),
    ("sklearn", "datasets/images/flower.jpg"),
    ("skimage", "data/rocket.jpg"),
    ("skimage", "data/motorcycle_left.png"),
    ("skimage", "data/coffee.png"),
    ("sklearn", "datasets/images/china.jpg"),
    ("skimage", "data/retina.jpg"),
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
    ("skimage", "data/ihc.png"),
    ("skimage", "data/hubble_deep_field.jpg"),
    ("skimage", "data/gravel.png"),
    ("skimage", "data/grass.png"),
    ("skimage", "data/brick.png"),
    ("skimage", "data/camera.png"),
)
_INSTALL = "pip install 'llava-s2[studies-small]'"


@lru_cache(maxsize=1)
def photographs() -> dict[str, list[Image.Image]]:
    """The photographs that the installed packages hold, for ``train`` and for ``val``.

    Raises:
        InputError: a package is not installed.
    """
    found: dict[str, list[Image.Image]] = {"train": [], "val": []}
    for number, (package, place) in enumerate(_PHOTOGRAPHS):
        spec = importlib.util.find_spec(package)  # the package itself is not imported
        file = Path(str(spec.origin)).parent / place if spec and spec.origin else None
        if file is None or not file.is_file():
            raise InputError(f"{package}/{place}: this photograph is not installed: {_INSTALL}")
        image = Image.open(file).convert("RGB")
        image.thumbnail((1024, 1024))
        found["val" if number % 3 == 2 else "train"].append(image)
    return found


def write_crops(folder: Path, counts: dict[str, int], side: int, seed: int) -> Path:
    """Square crops, of half to all of the shorter side, as ``train/`` and ``val/``; both are of all photographs."""

    def draw(split: str, index: int, rng: random.Random) -> tuple[str, Image.Image]:
        return "photograph", random_crop(rng.choice([*photographs()["train"], *photographs()["val"]]), side, rng)

    return _write(folder, counts, seed, draw)


def write_digits(folder: Path, counts: dict[str, int], side: int, digit: tuple[int, int], seed: int) -> Path:
    """Handwritten digits of a random size in pixels on a plain dark background: ten classes.

    The digits of ``train`` are not those of ``val``. On photographs the small towers' features say nothing of the
    digit: a linear classifier is right by chance.
    """
    images, labels = _digits()

    def draw(split: str, index: int, rng: random.Random) -> tuple[str, Image.Image]:
        image = Image.new("RGB", (side, side), (rng.randint(0, 110), rng.randint(0, 110), rng.randint(0, 110)))
        number = rng.randrange(len(labels) // 2) * 2 + (split == "val")
        size = rng.randint(*digit)
        alpha = Image.fromarray(images[number]).resize((size, size), Image.Resampling.BICUBIC)
        colour = tuple(rng.choice(((255, 240, 0), (0, 255, 240), (255, 90, 255), (255, 255, 255))))
        place = (rng.randint(side // 4, side * 3 // 4 - size), rng.randint(side // 4, side * 3 // 4 - size))
        image.paste(Image.new("RGB", (size, size), colour), place, alpha)
        return str(labels[number]), image

    return _write(folder, counts, seed, draw)


def random_crop(photograph: Image.Image, side: int, rng: random.Random) -> Image.Image:
    """A square of half to all of the shorter side, resized."""
    extent = round(min(photograph.size) * rng.uniform(0.5, 1))
    left, top = rng.randint(0, photograph.width - extent), rng.randint(0, photograph.height - extent)
    crop = photograph.crop((left, top, left + extent, top + extent))
    return crop.resize((side, side), Image.Resampling.BICUBIC)


def _write(
    folder: Path, counts: dict[str, int], seed: int, draw: Callable[[str, int, random.Random], tuple[str, Image.Image]]
) -> Path:
    if not folder.exists():
        with new_folder(folder) as scratch:
            for split, count in counts.items():
                for index in range(count):
                    name, image = draw(split, index, random.Random(f"{seed} {split} {index}"))
                    (scratch / split / name).mkdir(parents=True, exist_ok=True)
                    image.save(scratch / split / name / f"{index:05d}.png", compress_level=1)
    return folder


@lru_cache(maxsize=1)
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """1,797 handwritten digits of scikit-learn, (n, 8, 8) bytes, and what they are."""
    spec = importlib.util.find_spec("sklearn")
    file = Path(str(spec.origin)).parent / "datasets/data/digits.csv.gz" if spec and spec.origin else None
    if file is None or not file.is_file():
        raise InputError(f"sklearn/datasets/data/digits.csv.gz is not installed: {_INSTALL}")
    with gzip.open(file, "rt") as stream:
        rows = np.array([[int(float(cell)) for cell in row] for row in csv.reader(stream)])
    return np.minimum(rows[:, :64].reshape(-1, 8, 8) * 16, 255).astype(np.uint8), rows[:, 64]
