"""Demonstrations in robomimic's HDF5 layout: ``data/demo_N`` with ``actions`` and ``obs`` of images and states."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from llava_s2.errors import InputError
from llava_s2.files import atomic_write
from llava_s2.studies.feature_cache import ImageSource
from llava_s2.studies.simulator import Simulator

_MOST_STEPS = 60
_NOISE = 0.15  # of the expert's actions as they are carried out, so that it is seen to correct itself


@dataclass(frozen=True)
class Demos:
    """Demonstrations, one after the other.

    Attributes:
        images: (n, H, W, 3) of bytes. states: (n, S). actions: (n, A). starts: where each demonstration begins.
    """

    images: np.ndarray
    states: np.ndarray
    actions: np.ndarray
    starts: list[int]

    def image_source(self) -> ImageSource:
        import hashlib

        key = hashlib.blake2b(self.images[:, ::8, ::8].tobytes() + str(self.images.shape).encode(), digest_size=16)

        def load(index: int, side: int) -> Image.Image:
            return Image.fromarray(self.images[index]).resize((side, side), Image.Resampling.BICUBIC)

        return ImageSource(len(self.images), load, key.hexdigest())


def record(simulator: Simulator, count: int, first: int, file: Path) -> None:
    """Writes demonstrations of the scripted expert, at random positions from number `first` on."""
    h5py = _h5py(file)
    with atomic_write(file) as partial, h5py.File(partial, "w") as out:
        for number in tqdm(range(count), desc="demonstrations", unit="demo"):
            rng = np.random.default_rng(first + number)
            seen = simulator.reset(first + number)
            images, states, actions = [], [], []
            for _ in range(_MOST_STEPS):
                action = simulator.expert()
                images.append(seen.image)
                states.append(seen.state)
                actions.append(action)
                seen, held = simulator.step(action + rng.normal(0, _NOISE, len(action)) * [1, 1, 1, 0])
                if held:
                    break
            demo = out.create_group(f"data/demo_{number}")
            demo.attrs["num_samples"] = len(actions)
            demo.create_dataset("actions", data=np.stack(actions))
            demo.create_dataset("obs/image", data=np.stack(images), compression="lzf")
            demo.create_dataset("obs/state", data=np.stack(states))


def read(file: Path) -> Demos:
    """The demonstrations of a file: of each, the one image (``image``, or what ends so) and all states but an object's.

    Raises:
        InputError: it is no such file, or a demonstration lacks something.
    """
    h5py = _h5py(file)
    images: list[np.ndarray] = []
    states: list[np.ndarray] = []
    actions: list[np.ndarray] = []
    starts: list[int] = []
    try:
        with h5py.File(file, "r") as found:
            names = sorted(found["data"], key=lambda name: int(name.rpartition("_")[2]))
            for name in names:
                demo: Any = found["data"][name]
                keys = sorted(demo["obs"])
                image = next((key for key in keys if key.endswith("image")), None)
                if image is None:
                    raise InputError(f"{file}: data/{name}/obs has no image, only {', '.join(keys)}")
                low = [key for key in keys if demo["obs"][key].ndim == 2 and "object" not in key]
                if not low:
                    raise InputError(f"{file}: data/{name}/obs has no state of the robot, only {', '.join(keys)}")
                parts = [np.asarray(demo["obs"][key], dtype=np.float32) for key in low]
                lengths = {len(demo["actions"]), len(demo["obs"][image]), *(len(part) for part in parts)}
                if len(lengths) > 1 or not min(lengths):
                    raise InputError(f"{file}: data/{name} has actions, images and states of lengths {sorted(lengths)}")
                starts.append(sum(len(part) for part in actions))
                images.append(np.asarray(demo["obs"][image]))
                states.append(np.concatenate(parts, axis=1))
                actions.append(np.asarray(demo["actions"], dtype=np.float32))
    except (OSError, KeyError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file}: is not HDF5 in robomimic's layout ({error})") from None
    if not images:
        raise InputError(f"{file}: holds no demonstrations")
    return Demos(np.concatenate(images), np.concatenate(states), np.concatenate(actions), starts)


def _h5py(file: Path) -> Any:
    try:
        import h5py
    except ImportError:
        raise InputError(f"{file}: needs h5py: pip install 'llava-s2[studies]'") from None
    return h5py
