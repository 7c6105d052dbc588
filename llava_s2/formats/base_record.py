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
from llava_s2.formats.identify import Checkpoint
from llava_s2.formats.lazy_tensors import LazyTensor, lazy_tensors
from llava_s2.formats.tensor_names import split
from llava_s2.model.embedded import NAME as EMBEDDED
from llava_s2.model.embedded import resolve_language_model
from llava_s2.weight_files import WEIGHT_FILES, find_file, read_json

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
    parts = split(tensors)
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


def check_base(name: str, record: BaseRecord | None, base: str, model: torch.nn.Module | None) -> None:
    """Compares a base with what an adapter recorded of its own.

    Args:
        name: the adapter. base: where the base is.
        model: the base in memory; None reads the folder's files.

    Raises:
        InputError: it is another model.
    """
    if record is None:
        return
    tensors: Mapping[str, LazyTensor | torch.Tensor] = lazy_tensors(base) if model is None else model.state_dict()
    if not matches(record.checksum, checksum(tensors)):
        raise InputError(
            f"{name}: was trained over {record.name}, and {base} is another model (its weights differ); name the "
            "right one with --base"
        )


def find_base(name: str, record: BaseRecord | None) -> "str | dict[str, Any]":
    """Where an adapter's base is: a folder or hub id, or the parts that it can be made of again.

    Looked for under the name in adapter_config.json; then, where the adapter has a record to know it by, under the
    name there, beside the adapter, and by its parts.

    Raises:
        InputError: it is in none of these places.
    """
    named = read_json(str(find_file(name, "adapter_config.json"))).get("base_model_name_or_path")
    folder = Path(name)
    if named and Path(named).is_dir() and folder.is_dir() and Path(named).samefile(folder):
        raise InputError(f"{name}: names itself as the model it was trained on; name that with --base")
    places = [named]
    if record is not None:
        places += [record.name, str(folder / "base"), str(folder.parent / "base")]
    for place in places:
        if place == EMBEDDED and (record is None or record.parts is None):
            return EMBEDDED
        if place and place != EMBEDDED and is_model(place):
            return place
    if record is not None and record.parts is not None and _are_there(record.parts):
        return record.parts
    if not named:
        raise InputError(f"{name}: does not name the model it was trained on; name it with --base")
    raise InputError(f"{name}: the model it was trained on, {named}, is not there; name its folder with --base")


def is_model(name: str) -> bool:
    """Whether a folder, or a hub id that can be reached, holds a full model or an adapter of one."""
    if Path(name).is_absolute() and not Path(name).is_dir():
        return False
    if find_file(name, "adapter_config.json"):
        return True
    return find_file(name, "config.json") is not None and any(find_file(name, file) for file in WEIGHT_FILES)


def _are_there(parts: Mapping[str, Any]) -> bool:
    return all(
        parts[key] == EMBEDDED
        or ":" in parts[key]
        or Path(parts[key]).is_file()
        or find_file(parts[key], "config.json")
        for key in ("llm", "vision_tower")
    )


def named_base(checkpoint: Checkpoint, base: str | Path | None = None) -> str:
    """The model under an adapter or projector: the one given, or else the one that it names."""
    if base is not None:
        return resolve_language_model(base)
    if checkpoint.kind == "llava_projector":
        named = checkpoint.config.get("_name_or_path")
        if not named or find_file(named, "config.json") is None:
            raise InputError(f"{checkpoint.name}: holds a projector alone; name its language model with --base")
        return named
    adapter_config = find_file(checkpoint.name, "adapter_config.json")
    named = read_json(adapter_config).get("base_model_name_or_path") if adapter_config else None
    if not named:
        raise InputError(f"{checkpoint.name}: does not name the model it was trained on; name it with --base")
    named = resolve_language_model(named)
    if not named.endswith(".gguf") and find_file(named, "config.json") is None:
        raise InputError(
            f"{checkpoint.name}: the model it was trained on, {named}, is not there; name its folder with --base"
        )
    return named


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
