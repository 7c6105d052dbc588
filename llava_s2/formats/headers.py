"""Names, shapes and dtypes of a checkpoint's tensors, from the files' headers alone and without torch.

A safetensors file begins with its header. A ``.bin`` file is a zip archive (``torch.save`` since 1.6) whose pickle
describes the tensors; it is read by an unpickler that knows tensors and nothing else, so no code of the file runs.
"""

import json
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from llava_s2.errors import InputError

# The names that safetensors and torch.save give to dtypes.
_SAFETENSORS_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
_STORAGE_DTYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
_WIDTHS = {"float64": 8, "int64": 8, "float32": 4, "int32": 4, "float16": 2, "bfloat16": 2, "int16": 2}


@dataclass(frozen=True)
class TensorHeader:
    """A tensor in a file: its shape, and its dtype by torch's name, such as ``bfloat16``."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * _WIDTHS.get(self.dtype, 1)


def read_headers(path: str | Path) -> dict[str, TensorHeader]:
    """What one safetensors or ``.bin`` file holds, by name.

    Raises:
        InputError: the file is damaged, is cut off, or holds more than tensors.
    """
    path = Path(path)
    read = _read_safetensors if path.suffix == ".safetensors" else _read_bin
    return {name: TensorHeader(path, name, *found) for name, found in read(path).items()}


def _read_safetensors(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header: Any = json.loads(file.read(length)) if length <= size - 8 else None
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        if size != 8 + length + end:
            raise ValueError(f"{size} bytes where the header tells of {8 + length + end}")
        return {
            name: (tuple(entry["shape"]), _SAFETENSORS_DTYPES.get(entry["dtype"], entry["dtype"]))
            for name, entry in entries.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise InputError(f"{path}: not a whole safetensors file ({error}); fetch it again") from error


def _read_bin(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            cut_off = file.read(2) == b"PK"
        if cut_off:
            raise InputError(f"{path}: not a whole PyTorch file; fetch it again")
        return _read_legacy_bin(path)
    try:
        with zipfile.ZipFile(path) as archive:
            (record,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
            with archive.open(record) as file:
                content = _TensorUnpickler(file).load()
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: refused, because reading it would run code that it contains ({error}); "
            "ask for it as safetensors or as a .bin of tensors only"
        ) from error
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise InputError(f"{path}: not a whole PyTorch file; fetch it again") from error
    if not isinstance(content, Mapping) or not all(isinstance(value, _Described) for value in content.values()):
        raise InputError(f"{path}: does not hold a dictionary of tensors")
    return {name: (value.shape, value.dtype) for name, value in content.items()}


def _read_legacy_bin(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """A file of torch before 1.6 has no header to speak of."""
    from llava_s2.weight_files import read_tensors

    return {
        name: (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in read_tensors(path).items()
    }


@dataclass(frozen=True)
class _Described:
    shape: tuple[int, ...]
    dtype: str


def _describe(storage: str, offset: int, shape: tuple[int, ...], *_: Any) -> _Described:
    return _Described(tuple(shape), storage)


def _described_parameter(described: _Described, *_: Any) -> _Described:
    return described


class _TensorUnpickler(pickle.Unpickler):
    """Reads the pickle of ``torch.save`` with descriptions in place of tensors, and refuses anything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _describe
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _described_parameter
        if module in ("torch", "torch.storage") and name in _STORAGE_DTYPES:
            return _STORAGE_DTYPES[name]
        raise pickle.UnpicklingError(f"it names {module}.{name}")

    def persistent_load(self, pid: Any) -> str:
        kind, dtype, *_ = pid
        if kind != "storage" or not isinstance(dtype, str):
            raise pickle.UnpicklingError(f"it refers to {kind!r}")
        return dtype
