"""What an adapter was trained over: recorded beside it by name and by checksum, so that no other base passes for it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from llava_s2.errors import InputError
from llava_s2.files import atomic_write
from llava_s2.formats.lazy_tensors import LazyTensor
from llava_s2.formats.names import split_parts
from llava_s2.weight_files import find_file, read_json

FILE = "llava_s2_base.json"
_SAMPLED_VALUES = 64
# A base is the same one in whichever of these it is stored or loaded.
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class BaseRecord:
    """The base of an adapter.

    Attributes:
        name: the folder or hub id.
        checksum: of the base's weights in each of three dtypes, see `checksum`.
        parts: where the base was made of a language model and a tower, the arguments of ``create_native`` that make it
            again; else None.
    """

    name: str
    checksum: dict[str, str]
    parts: dict[str, Any] | None = None

    def save(self, folder: str | Path) -> None:
        """Writes it into a folder: an adapter's, or the base's own."""
        with atomic_write(Path(folder) / FILE) as path:
            path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, name: str) -> "BaseRecord | None":
        """The record in a folder or hub id; None where there is none, as beside adapters of other programs.

        Raises:
            InputError: the file is damaged.
        """
        path = find_file(name, FILE)
        if path is None:
            return None
        content = read_json(path)
        try:
            return cls(str(content["name"]), dict(content["checksum"]), content.get("parts"))
        except (KeyError, TypeError, ValueError):
            raise InputError(f"{path}: not a record of an adapter's base; fetch it again") from None


def checksum(tensors: Mapping[str, LazyTensor | torch.Tensor]) -> dict[str, str]:
    """A checksum of a LLaVA's weights: of their names and shapes, and of a sample of the values of each.

    The projector does not count, because every adapter holds its own.

    Args:
        tensors: by any of the names that a LLaVA's tensors have.

    Returns:
        Checksums of the values as they are in float32, bfloat16 and float16, by dtype; and as ``stored`` the dtype that
        the language model has.
    """
    parts = split_parts(tensors)
    tower = {name.removeprefix("backbone.").removeprefix("vision_model."): t for name, t in parts.vision_tower.items()}
    named = {f"language_model.{name}": tensor for name, tensor in parts.language_model.items()}
    named |= {f"vision_tower.{name}": tensor for name, tensor in tower.items()}
    if _is_tied(parts.language_model):
        named.pop("language_model.lm_head.weight", None)
    digests = {dtype: hashlib.sha256() for dtype in _DTYPES}
    for name in sorted(named):
        lazy = LazyTensor.of(named[name])
        values = _sample(lazy.read())
        for dtype, digest in digests.items():
            digest.update(f"{name}\0{lazy.shape}\0".encode())
            digest.update(values.to(dtype).view(torch.uint8).numpy().tobytes())
    stored = next((LazyTensor.of(tensor).dtype for tensor in parts.language_model.values()), torch.float32)
    return {_name(dtype): digest.hexdigest()[:32] for dtype, digest in digests.items()} | {"stored": _name(stored)}


def matches(recorded: Mapping[str, str], found: Mapping[str, str]) -> bool:
    """Whether two checksums are of one base, which may have been rounded to another dtype since."""
    narrower = found["stored"] if recorded.get("stored") == "float32" else recorded.get("stored", "float32")
    if "float32" not in (recorded.get("stored"), found["stored"]):
        narrower = found["stored"]
    return narrower in found and recorded.get(narrower) == found[narrower]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _is_tied(language_model: Mapping[str, Any]) -> bool:
    head, embedding = (language_model.get(name) for name in ("lm_head.weight", "embed_tokens.weight"))
    if not isinstance(head, torch.Tensor) or not isinstance(embedding, torch.Tensor):
        return False
    return head.data_ptr() == embedding.data_ptr()


def _sample(tensor: torch.Tensor) -> torch.Tensor:
    """Values of the first and of the middle row, float32, on the CPU."""
    if tensor.dim() == 0:
        tensor = tensor[None]
    picked = (tensor,) if tensor.dim() == 1 else (tensor[0], tensor[tensor.shape[0] // 2])
    values = [row.detach().reshape(-1)[:_SAMPLED_VALUES] for row in picked]
    return torch.cat(values).to("cpu", torch.float32)
