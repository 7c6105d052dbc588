"""Weights of a checkpoint folder, read and written a shard at a time."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from llava_s2.errors import InputError
from llava_s2.formats.headers import TensorHeader, read_headers
from llava_s2.weight_files import read_tensors, weight_files

SHARD_BYTES = 10**9


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is made when it is written: its shape, its dtype, and how to get it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    @classmethod
    def of(cls, tensor: "Tensor | LazyTensor") -> "LazyTensor":
        """A tensor that is in memory already."""
        if isinstance(tensor, LazyTensor):
            return tensor
        return cls(tuple(tensor.shape), tensor.dtype, lambda: tensor)

    @classmethod
    def stored(cls, header: TensorHeader) -> "LazyTensor":
        """A tensor of a file, which is mapped into memory when it is read and for no longer than it is held."""
        dtype = getattr(torch, header.dtype, None)
        if not isinstance(dtype, torch.dtype):
            raise InputError(f"{header.path}: {header.name} has the dtype {header.dtype}, which torch does not know")

        def read() -> Tensor:
            # Opened for one tensor at a time, because pages of a mapped file count as this process's memory.
            if header.path.suffix != ".safetensors":
                return read_tensors(header.path)[header.name]
            with safe_open(header.path, "pt") as file:
                return file.get_tensor(header.name)

        return cls(header.shape, dtype, read)

    def nbytes(self, dtype: torch.dtype | None = None) -> int:
        return prod(self.shape) * (dtype or self.dtype).itemsize


def lazy_tensors(name: str) -> dict[str, LazyTensor]:
    """All tensors of a full checkpoint, by name.

    Raises:
        InputError: see `weight_files` and `read_headers`.
    """
    return {key: LazyTensor.stored(header) for file in weight_files(name) for key, header in read_headers(file).items()}


def weight_bytes(tensors: Mapping[str, LazyTensor], dtype: torch.dtype | None = None) -> int:
    """Bytes of these tensors as `write_weights` writes them."""
    return sum(tensor.nbytes(dtype) for tensor in tensors.values())


def write_weights(folder: Path, tensors: Mapping[str, LazyTensor], dtype: torch.dtype | None = None) -> None:
    """Writes ``model.safetensors``, or shards of at most `SHARD_BYTES` with their index, holding one shard at a time.

    Args:
        folder: exists.
        tensors: by name; written in the order of their names.
        dtype: to convert to; None keeps each tensor's own.
    """
    shards: list[list[str]] = [[]]
    filled = 0
    for name in sorted(tensors):
        size = tensors[name].nbytes(dtype)
        if shards[-1] and filled + size > SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    weight_map: dict[str, str] = {}
    for number, names in enumerate(tqdm(shards, desc="writing", unit="shard", disable=len(shards) == 1 or None), 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_tensors(folder / file, {name: tensors[name] for name in names}, dtype)
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": weight_bytes(tensors, dtype)}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def write_tensors(path: Path, tensors: Mapping[str, LazyTensor], dtype: torch.dtype | None = None) -> None:
    """Writes one safetensors file, all of it from memory."""
    save_file(
        {name: tensor.read().to(dtype or tensor.dtype).contiguous() for name, tensor in tensors.items()},
        path,
        metadata={"format": "pt"},
    )
