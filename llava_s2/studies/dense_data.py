"""Images with a truth for every pixel: ADE20k's masks; NYUv2's depths in three layouts."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from llava_s2.errors import InputError
from llava_s2.studies.dense_metrics import IGNORED
from llava_s2.studies.feature_cache import ImageSource

_IMAGES = (".jpg", ".jpeg", ".png")
_NYU_MAT = "nyu_depth_v2_labeled.mat"


@dataclass(frozen=True)
class DenseItem:
    """One image: `image()` is RGB, `truth()` (H, W) is a class or `IGNORED`, or a depth in metres (0: unknown)."""

    name: str
    image: Callable[[], Image.Image] = field(repr=False, compare=False)
    truth: Callable[[], np.ndarray] = field(repr=False, compare=False)


DenseSets = dict[str, list[DenseItem]]


def squares(items: list[DenseItem]) -> tuple[ImageSource, str]:
    """The images, stretched to squares, and a key of their truth. Both are known by a sample of their pixels."""
    digest, of_truth = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)
    for item in items:
        image = item.image()
        digest.update(str(image.size).encode() + np.asarray(image)[::16, ::16].tobytes())
        of_truth.update(item.truth()[::16, ::16].tobytes())

    def load(index: int, side: int) -> Image.Image:
        return items[index].image().resize((side, side), Image.Resampling.BICUBIC)

    return ImageSource(len(items), load, f"{digest.hexdigest()} square"), of_truth.hexdigest()


def load_masks(data: Path, limit: int | None = None) -> tuple[DenseSets, int]:
    """ADE20k's layout: ``images/training``, ``annotations/training`` (PNG, 0 is ignored), and ``…/validation``.

    Returns:
        The splits ``train`` and ``val``, and the number of classes: the largest in any mask. Class k of the files is
        k - 1 in the truth.

    Raises:
        InputError: a folder or a mask is missing, or an image and its mask differ in size.
    """
    sets: DenseSets = {}
    for split, word in (("train", "training"), ("val", "validation")):
        items = []
        for image in _files(data / "images" / word)[:limit]:
            mask = data / "annotations" / word / f"{image.stem}.png"
            if not mask.is_file():
                raise InputError(f"{image}: has no mask {mask}")
            items.append(DenseItem(image.relative_to(data).as_posix(), _opener(image), partial(_mask, mask)))
        sets[split] = items
    most = check(sets)
    if most < 1:
        raise InputError(f"{data / 'annotations'}: all masks are 0, which is ignored")
    return sets, int(most) + 1


def load_depths(data: Path, limit: int | None = None) -> DenseSets:
    """NYUv2: ``nyu_depth_v2_labeled.mat`` with ``splits.mat``; fast-depth's ``train/*/*.h5`` and ``val/*/*.h5``; or
    ``train`` and ``val`` with ``images/`` and ``depths/`` (.npy in metres, or 16-bit PNG in millimetres).

    Raises:
        InputError: no layout fits, or a file is broken or missing.
    """
    if (data / _NYU_MAT).is_file():
        sets = _nyu_mat(data)
    elif any(data.glob("train/**/*.h5")):
        sets = {split: [_h5_item(f, data) for f in sorted(data.glob(f"{split}/**/*.h5"))] for split in ("train", "val")}
    else:
        sets = {}
        for split in ("train", "val"):
            items = []
            for image in _files(data / split / "images"):
                found = [data / split / "depths" / f"{image.stem}{suffix}" for suffix in (".npy", ".png")]
                depth = next((path for path in found if path.is_file()), None)
                if depth is None:
                    raise InputError(f"{image}: has no depth {found[0]} or .png")
                items.append(DenseItem(image.relative_to(data).as_posix(), _opener(image), partial(_depth, depth)))
            sets[split] = items
    if empty := [split for split, items in sets.items() if not items]:
        raise InputError(f"{data}: its {empty[0]} split is empty")
    sets = {split: items[:limit] for split, items in sets.items()}
    if check(sets) <= 0:
        raise InputError(f"{data}: all depths are 0, which means unknown")
    return sets


def check(sets: DenseSets) -> float:
    """Opens everything once; the largest value in the truth that is not ignored.

    Raises:
        InputError: a file is broken, or an image and its truth differ in size.
    """
    most = -1.0
    for items in sets.values():
        for item in tqdm(items, desc="check images", unit="image"):
            size, truth = item.image().size, item.truth()
            if truth.shape != (size[1], size[0]):
                raise InputError(f"{item.name}: the image is {size[0]} x {size[1]}, its truth {truth.shape[::-1]}")
            if truth.dtype.kind == "f" and not (np.isfinite(truth).all() and (truth >= 0).all()):
                raise InputError(f"{item.name}: its depths hold values that are negative or not finite")
            known = truth[truth != IGNORED] if truth.dtype.kind != "f" else truth
            most = max(most, float(known.max()) if known.size else -1.0)
    return most


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder; docs/studies.md shows the layouts")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _IMAGES)
    if not files:
        raise InputError(f"{folder}: holds no images")
    return files


def _opener(path: Path) -> Callable[[], Image.Image]:
    def read() -> Image.Image:
        try:
            with Image.open(path) as image:
                return image.convert("RGB")
        except (OSError, ValueError, SyntaxError) as error:
            raise InputError(f"{path}: cannot be decoded as an image ({error})") from None

    return read


def _mask(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            mask = np.asarray(image)
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{path}: cannot be decoded as a mask ({error})") from None
    if mask.ndim != 2 or mask.max(initial=0) > 255:
        raise InputError(f"{path}: a mask has one channel of class numbers up to 255, not shape {mask.shape}")
    return np.where(mask == 0, IGNORED, mask.astype(np.int64) - 1).astype(np.uint8)


def _depth(path: Path) -> np.ndarray:
    try:
        if path.suffix == ".npy":
            return np.load(path).astype(np.float32)
        with Image.open(path) as image:
            values = np.asarray(image)
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{path}: cannot be read as depths ({error})") from None
    if values.dtype == np.uint8:
        raise InputError(f"{path}: has 8 bits a pixel; depths are 16-bit PNG in millimetres, or .npy in metres")
    return values.astype(np.float32) / 1000


@lru_cache(maxsize=64)
def _open_h5(path: Path) -> Any:
    try:
        import h5py
    except ImportError:
        raise InputError(f"{path}: needs h5py: pip install 'llava-s2[studies]'") from None
    return h5py.File(path, "r")


def _h5_item(path: Path, data: Path) -> DenseItem:
    def read(key: str) -> np.ndarray:
        try:
            return np.asarray(_open_h5(path)[key])
        except (OSError, KeyError) as error:
            raise InputError(f"{path}: is not fast-depth's HDF5 with rgb and depth ({error})") from None

    return DenseItem(
        path.relative_to(data).as_posix(),
        lambda: Image.fromarray(read("rgb").transpose(1, 2, 0)),
        lambda: read("depth").astype(np.float32),
    )


def _nyu_mat(data: Path) -> DenseSets:
    """The labelled 1,449 images and their official split; the arrays lie column by column, as MATLAB writes them."""
    path, splits = data / _NYU_MAT, data / "splits.mat"
    if not splits.is_file():
        raise InputError(f"{splits}: is missing, which tells the 795 images to train on from the 654 to test on")
    try:
        from scipy.io import loadmat
    except ImportError:
        raise InputError(f"{splits}: needs scipy: pip install 'llava-s2[studies]'") from None
    try:
        file = _open_h5(path)
        images, depths = file["images"], file["depths"]
        numbers = loadmat(splits)
        told = {"train": numbers["trainNdxs"].ravel() - 1, "val": numbers["testNdxs"].ravel() - 1}
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{data}: {_NYU_MAT} or splits.mat is broken ({error})") from None
    if outside := [int(n) for found in told.values() for n in found if not 0 <= n < len(images)]:
        raise InputError(f"{splits}: names image {outside[0] + 1}, but {path} holds {len(images)}")

    def item(number: int) -> DenseItem:
        return DenseItem(
            f"{_NYU_MAT}:{number + 1}",
            lambda: Image.fromarray(images[number].transpose(2, 1, 0)),
            lambda: depths[number].T.astype(np.float32),
        )

    return {split: [item(int(number)) for number in found] for split, found in told.items()}
