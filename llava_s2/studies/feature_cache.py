"""Features of images by frozen towers, computed once: float16, memory-mapped, and gone on with where a run ended."""

import fcntl
import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from llava_s2.errors import InputError
from llava_s2.files import atomic_write
from llava_s2.studies.image_sets import ImageSet
from llava_s2.studies.study_towers import StudyTower, load_tower, weights_key

_FLUSH_SECONDS = 10.0
_LARGEST = 65504.0  # of float16


@dataclass(frozen=True)
class ScaleSetting:
    """Which image scales a tower is run on, and how.

    Attributes:
        scales: image sides in pixels. The smallest is the side of the tiles.
        output: the scale whose grid the features have.
        full_resolution: resize the file to the largest scale, and the others from that. False is the paper's way: the
            file is resized to the output scale, and all others are interpolated from that.
        split: False runs every scale as one whole image (the paper's table 12).
        merge: "concat", or "add" (table 13).
    """

    scales: tuple[int, ...]
    output: int
    full_resolution: bool = False
    split: bool = True
    merge: str = "concat"

    @property
    def source(self) -> int:
        """Side in pixels of the image that the scales are made from."""
        return max(self.scales) if self.full_resolution else self.output

    def __str__(self) -> str:
        kinds = [] if self.split else ["whole images"]
        kinds += [] if self.merge == "concat" else ["added"]
        return ", ".join([*(f"{side}²" for side in self.scales), *kinds])


@dataclass(frozen=True)
class ImageSource:
    """Images to extract features of.

    Attributes:
        count: how many. load: the RGB image number i as a square of a given side. key: tells them from any others.
    """

    count: int
    load: Callable[[int, int], Image.Image]
    key: str


def cropped(images: ImageSet, crop: float = 0.875) -> ImageSource:
    """Images of a set, the shorter side resized to 1 / `crop` of the square that is then cut out of the middle."""

    def load(index: int, side: int) -> Image.Image:
        image = images.items[index].image()
        factor = round(side / crop) / min(image.size)
        size = (max(round(image.width * factor), side), max(round(image.height * factor), side))
        image = image.resize(size, Image.Resampling.BICUBIC)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        return image.crop((left, top, left + side, top + side))

    return ImageSource(len(images), load, f"{images.digest()} crop {crop}")


class Extractor:
    """Features of images by towers; what a cache folder holds already is read from there.

    Args:
        cache: folder. Each tower, scale and set of images is a file of its own in it.
        pool: keep the mean over a map's positions alone.
    """

    def __init__(self, cache: Path, pool: bool = False) -> None:
        self.cache, self.pool = cache, pool

    def features(self, tower: str, setting: ScaleSetting, image_source: ImageSource) -> "Features":
        """The features of a setting, scale by scale from the cache."""
        maps = [self._scale(tower, setting, side, image_source) for side in setting.scales]
        return Features(maps, setting.merge)

    def _scale(self, name: str, setting: ScaleSetting, side: int, image_source: ImageSource) -> np.memmap:
        base = min(setting.scales) if setting.split else side
        what = {
            "tower": weights_key(name, base),
            "scale": side,
            "source": setting.source,
            "output": setting.output,
            "pool": self.pool,
            "images": image_source.key,
            "count": image_source.count,
        }
        key = hashlib.blake2b(json.dumps(what, sort_keys=True).encode(), digest_size=12).hexdigest()
        folder = self.cache / key
        shape = _finished(folder)
        if shape is None:
            tower = load_tower(name, base)
            shape = _extract(folder, what, tower, side, _grid(tower, setting), self.pool, image_source)
        return np.memmap(folder / "features.f16", np.float16, "r", shape=shape)


class Features:
    """Features (n, positions, channels) of one or more scales, read when they are asked for."""

    def __init__(self, scales: Sequence[np.ndarray], merge: str = "concat") -> None:
        self._scales, self._merge = scales, merge

    @classmethod
    def of(cls, features: Tensor) -> "Features":
        """Features (n, channels) that are in memory."""
        return cls([features.float().numpy()[:, None]])

    def __len__(self) -> int:
        return len(self._scales[0])

    @property
    def channels(self) -> int:
        return self._scales[0].shape[2] * (len(self._scales) if self._merge == "concat" else 1)

    def __getitem__(self, index: Any) -> Tensor:
        """Features of the images of these indices (n), float32 (n, positions, channels)."""
        index = np.asarray(index)
        order = np.argsort(index, kind="stable")  # the disk is read forwards
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        parts = [torch.from_numpy(scale[index[order]][back].astype(np.float32)) for scale in self._scales]
        return torch.cat(parts, dim=2) if self._merge == "concat" else torch.stack(parts).sum(0)

    def part(self, index: np.ndarray) -> "Features":
        """The features of these images, in memory."""
        return Features([scale[index] for scale in self._scales], self._merge)

    def batches(self, size: int = 256) -> Iterator[Tensor]:
        for start in range(0, len(self), size):
            yield self[np.arange(start, min(start + size, len(self)))]


def _grid(tower: StudyTower, setting: ScaleSetting) -> int:
    """Features along a side of the output: as many as the output scale's map has."""
    return tower.grid * setting.output // min(setting.scales) if setting.split else setting.output // tower.stride


def scale_features(tower: StudyTower, images: Tensor, side: int, grid: int) -> Tensor:
    """One scale of the multi-scale features: maps (B, C, grid, grid) of images (B, 3, S, S)."""
    maps = tower(images, [side])
    return maps if maps.shape[2] == grid else F.interpolate(maps, size=(grid, grid), mode="area")


def _finished(folder: Path) -> tuple[int, ...] | None:
    """The shape of the features in a folder, if they are there to their end."""
    done, file = folder / "done.json", folder / "features.f16"
    if not done.exists() or not file.exists():
        return None
    shape = tuple(json.loads(done.read_text())["shape"])
    return shape if file.stat().st_size == 2 * math.prod(shape) else None


def _extract(
    folder: Path, what: dict[str, Any], tower: StudyTower, side: int, grid: int, pool: bool, image_source: ImageSource
) -> tuple[int, ...]:
    folder.mkdir(parents=True, exist_ok=True)
    shape = (image_source.count, 1 if pool else grid * grid, tower.channels)
    progress = folder / "progress.json"
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"{folder}: another process is writing these features; wait for it") from None
        if _finished(folder):
            return shape
        done = json.loads(progress.read_text())["images"] if progress.exists() else 0
        file = folder / "features.f16"
        mode: Any = "r+" if done and file.exists() and file.stat().st_size == 2 * math.prod(shape) else "w+"
        done = done if mode == "r+" else 0
        needed, free = 2 * math.prod(shape), shutil.disk_usage(folder).free
        if mode == "w+" and needed > free:
            raise InputError(
                f"{folder}: these features take {needed / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free there"
            )
        store = np.memmap(file, np.float16, mode, shape=shape)
        batch = max(1, (8 if tower.s2.device.type == "cpu" else 512) // max(side // tower.base, 1) ** 2)
        flushed = monotonic()
        with (
            tqdm(total=image_source.count, initial=done, desc=f"features at {side}²", unit="image") as bar,
            torch.inference_mode(),
        ):
            for start, images in read_batches(image_source, [what["source"]], done, batch):
                pixels = tower.normalise(images[what["source"]])
                maps = scale_features(tower, pixels, side, grid).flatten(2).transpose(1, 2)
                maps = maps.mean(1, keepdim=True) if pool else maps
                store[start : start + len(maps)] = maps.clamp(-_LARGEST, _LARGEST).half().cpu().numpy()
                bar.update(len(maps))
                if monotonic() - flushed > _FLUSH_SECONDS:
                    store.flush()
                    with atomic_write(progress) as partial:
                        partial.write_text(json.dumps({"images": start + len(maps)}))
                    flushed = monotonic()
        store.flush()
        with atomic_write(folder / "done.json") as partial:
            partial.write_text(json.dumps({**what, "shape": shape}, indent=1))
    return shape


def read_batches(
    image_source: ImageSource, sides: list[int], first: int, size: int
) -> Iterator[tuple[int, dict[int, Tensor]]]:
    """Images from number `first` on, decoded ahead by threads.

    Returns:
        The number of a batch's first image, and for each side the images (n, side, side, 3) as bytes.
    """

    def read(start: int) -> tuple[int, dict[int, Tensor]]:
        numbers = range(start, min(start + size, image_source.count))
        images = {side: np.stack([np.asarray(image_source.load(i, side)) for i in numbers]) for side in sides}
        return start, {side: torch.from_numpy(stack) for side, stack in images.items()}

    starts = iter(range(first, image_source.count, size))
    pool = ThreadPoolExecutor()
    try:
        ahead = [pool.submit(read, start) for start in islice(starts, 4)]
        while ahead:
            batch = ahead.pop(0).result()
            ahead += [pool.submit(read, start) for start in islice(starts, 1)]
            yield batch
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
