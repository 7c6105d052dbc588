"""Tensors that are read when they are needed, and checkpoints of them, written a shard at a time."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from llava_s2.errors import InputError
from llava_s2.weight_files import TensorHeader, read_headers, read_tensors, weight_files

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
        """Bytes in its own or another dtype."""
        return prod(self.shape) * (dtype or self.dtype).itemsize

    def to(self, dtype: torch.dtype) -> "LazyTensor":
        """The tensor in another dtype."""
        return LazyTensor(self.shape, dtype, lambda: self.read().to(dtype))

    def scaled(self, factor: float) -> "LazyTensor":
        """The tensor times a number."""
        return LazyTensor(self.shape, self.dtype, lambda: self.read() * factor)

    def first_rows(self, rows: int) -> "LazyTensor":
        """The tensor without what follows its first rows."""
        return LazyTensor((rows, *self.shape[1:]), self.dtype, lambda: self.read()[:rows])

    def with_rows(self, other: "LazyTensor") -> "LazyTensor":
        """The tensor with another one's rows behind its own."""
        shape = (self.shape[0] + other.shape[0], *self.shape[1:])
        return LazyTensor(shape, self.dtype, lambda: torch.cat([self.read(), other.read().to(self.dtype)]))

    def with_mean_rows(self, rows: int) -> "LazyTensor":
        """The matrix grown to that many rows; each new one is the mean of those that it has."""

        def read() -> Tensor:
            matrix = self.read()
            mean = matrix.mean(0, keepdim=True, dtype=torch.float32).to(matrix.dtype)
            return torch.cat([matrix, mean.expand(rows - matrix.shape[0], -1)])

        return LazyTensor((rows, *self.shape[1:]), self.dtype, read)


def lazily(tensors: Mapping[str, Tensor]) -> dict[str, LazyTensor]:
    """Tensors in memory as `LazyTensor`."""
    return {name: LazyTensor.of(tensor) for name, tensor in tensors.items()}


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
    shards = split_state_dict_into_shards_factory(
        {name: tensors[name] for name in sorted(tensors)},
        get_storage_size=lambda tensor: tensor.nbytes(dtype),
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=SHARD_BYTES,
    )
    files = shards.filename_to_tensors.items()
    for file, names in tqdm(files, desc="writing", unit="shard", disable=not shards.is_sharded or None):
        write_tensors(folder / file, {name: tensors[name] for name in names}, dtype)
    if shards.is_sharded:
        index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def write_tensors(path: Path, tensors: Mapping[str, LazyTensor], dtype: torch.dtype | None = None) -> None:
    """Writes one safetensors file, all of it from memory."""
    save_file(
        {name: tensor.read().to(dtype or tensor.dtype).contiguous() for name, tensor in tensors.items()},
        path,
        metadata={"format": "pt"},
    )
