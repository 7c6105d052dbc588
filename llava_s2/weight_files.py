"""The files of a checkpoint: found in a folder or on the hub, and their tensors, memory-mapped.

torch is imported only where tensors are, so that `llava-s2 inspect` answers at once.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from llava_s2.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

# Index before single file: a folder may hold both after a conversion, and the index names its own files.
WEIGHT_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
_HUB_SECONDS = 10


@cache
def ask_hub(name: str) -> None:
    """Raises InputError, with the reason, where a name that is no folder is not to be had from the hub either.

    A hub that said yes is not asked again: a checkpoint is identified several times on its way.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    cached = find_file(name, "config.json", download=False)
    if constants.HF_HUB_OFFLINE:
        if cached is None:
            raise InputError(f"{name}: no such folder, and not in the hub's cache (HF_HUB_OFFLINE is set)")
        return
    try:
        HfApi().model_info(name, timeout=_HUB_SECONDS)  # asks once, where look-ups of files would try for minutes
    except HFValidationError:
        raise InputError(f"{name}: no such folder") from None
    except GatedRepoError:
        raise InputError(f"{name}: the hub wants its terms accepted, on its page, and then `hf auth login`") from None
    except RepositoryNotFoundError:
        raise InputError(
            f"{name}: no such folder, and the hub has no such model (a private one needs `hf auth login`)"
        ) from None
    except HfHubHTTPError:
        return  # a mirror that has files alone
    except Exception as error:  # of the network, whichever client is beneath
        if cached is None:
            raise InputError(
                f"{name}: no such folder, and the hub cannot be reached ({first_line(error)}); check the connection, "
                "or give the folder of a copy"
            ) from None
        raise InputError(
            f"{name}: the hub cannot be reached ({first_line(error)}), but a copy is in its cache; set HF_HUB_OFFLINE=1"
        ) from None


def weight_files(name: str) -> list[str]:
    """Paths of the files that hold a full checkpoint's weights: one safetensors or ``.bin`` file, or shards.

    Raises:
        InputError: no weights, or a shard that the index names is missing.
    """
    for file in WEIGHT_FILES:
        path = find_file(name, file)
        if path is None:
            continue
        if not file.endswith(".index.json"):
            return [path]
        weight_map = read_json(path).get("weight_map")
        if (
            not isinstance(weight_map, dict)
            or not weight_map
            or not all(isinstance(shard, str) for shard in weight_map.values())
        ):
            raise InputError(f"{path}: has no weight_map from tensors to files; fetch it again")
        shards = {shard: find_file(name, shard) for shard in sorted(set(weight_map.values()))}
        if missing := [shard for shard, found in shards.items() if found is None]:
            raise InputError(f"{name}: {missing[0]} is missing, which {file} names; fetch it again")
        return [found for found in shards.values() if found]
    raise InputError(f"{name}: there are no weights in it (looked for {', '.join(WEIGHT_FILES)})")


def check_numbers(name: str, tensors: "Mapping[str, Tensor]") -> None:
    """Raises InputError where trained tensors of a checkpoint are no floating-point numbers, or hold NaN."""
    for key, tensor in tensors.items():
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            what = "NaN or infinity" if tensor.is_floating_point() else str(tensor.dtype)
            raise InputError(f"{name}: {key} holds {what}: its training or its copying went wrong")


def read_tensors(path: str | Path) -> "dict[str, Tensor]":
    """The tensors of one safetensors or ``.bin`` file, memory-mapped.

    Raises:
        InputError: the file is damaged, or a ``.bin`` file holds more than tensors (``torch.load`` would run code).
    """
    import torch

    path = Path(path)
    if path.suffix == ".safetensors":
        with _opened(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    loaded = read_pickle(path)
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise InputError(f"{path}: does not hold a dictionary of tensors")
    return loaded


@dataclass(frozen=True)
class TensorHeader:
    """A tensor in a file: its shape, and its dtype by torch's name, such as ``bfloat16``."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        bits = re.search(r"\d+", self.dtype)
        return prod(self.shape) * int(bits[0] if bits else 8) // 8


def read_headers(path: str | Path) -> dict[str, TensorHeader]:
    """What one safetensors or ``.bin`` file holds, by name. torch is needed for a ``.bin`` file alone.

    Raises:
        InputError: see `read_tensors`.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        with _opened(path, "numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            found = {name: (tuple(each.get_shape()), _torch_name(each.get_dtype())) for name, each in slices.items()}
    else:
        found = {
            name: (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
            for name, tensor in read_tensors(path).items()
        }
    return {name: TensorHeader(path, name, *header) for name, header in found.items()}


def _torch_name(dtype: str) -> str:
    """torch's name of a safetensors dtype."""
    named = {"BF16": "bfloat16", "BOOL": "bool", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
    return named.get(dtype) or {"F": "float", "I": "int", "U": "uint"}.get(dtype[0], "") + dtype[1:]


@contextmanager
def _opened(path: Path, framework: str) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework) as file:
            yield file
    except SafetensorError as error:
        raise InputError(f"{path}: not a whole safetensors file ({error}); fetch it again") from error


def read_pickle(path: Path, plain: "tuple[type, ...]" = ()) -> Any:
    """What ``torch.save`` wrote: tensors, memory-mapped, in containers; and objects of the classes ``plain``.

    Raises:
        InputError: the file is damaged, or holds more than that.
    """
    import torch

    try:
        with torch.serialization.safe_globals(list(plain)):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except UnpicklingError as error:
        raise InputError(
            f"{path}: refused, because reading it would run code that it contains; "
            "ask for it as safetensors or as a .bin of tensors only"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        raise InputError(f"{path}: not a whole PyTorch file; fetch it again") from error


def find_file(name: str | Path, file: str, *, download: bool = True) -> str | None:
    """The local path of a file of a folder or (cached or, unless told not to, downloaded) hub id, or None."""
    name = str(name)
    if Path(name).is_dir():
        path = Path(name) / file
        return str(path) if path.is_file() else None
    from transformers.utils import cached_file

    try:
        return cached_file(
            name,
            file,
            local_files_only=not download,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )
    except (OSError, ValueError):  # no such hub id, or not one at all
        return None


def read_json(path: str | Path) -> dict[str, Any]:
    """Reads a JSON object. Raises InputError, naming the file, when it is not one."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a JSON object")
    return content


def first_line(error: Exception) -> str:
    """The first line of an exception's message, for an error's one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def list_names(names: Iterable[str], limit: int = 3) -> str:
    """A few of many names, for an error's one line."""
    names = sorted(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"
