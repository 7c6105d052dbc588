"""What a checkpoint in LLaVA's format holds that a model here does not, kept so that it can be written again.

It goes with a converted checkpoint in its folder ``llava``: config.json, the tokenizer's files, blocks after the
feature layer, buffers of old versions.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from llava_s2.formats.lazy_tensors import LazyTensor, write_tensors
from llava_s2.formats.tensor_names import is_old_buffer, tower_place
from llava_s2.weight_files import find_file, read_headers, read_json

FOLDER = "llava"
_LEFTOVER = "leftover.safetensors"
_TOWER_NAMES = "tower_names.json"
_KEPT_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
)


@dataclass
class SourceMetadata:
    """What a LLaVA-format checkpoint holds beside its model.

    Attributes:
        config: its config.json; empty where the model does not come from that format.
        files: tokenizer and generation settings, by name.
        tower_names: the names of the vision tower's tensors inside it; none where the tower is elsewhere.
        leftover: tensors that the model has no place for, by their names.
    """

    config: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    tower_names: list[str] = field(default_factory=list)
    leftover: dict[str, LazyTensor] = field(default_factory=dict)

    @classmethod
    def of_llava(
        cls,
        config: dict[str, Any],
        tokenizer: str,
        tensors: Mapping[str, LazyTensor],
        vision_tower: Mapping[str, LazyTensor],
    ) -> "SourceMetadata":
        """Of a LLaVA-format checkpoint.

        Args:
            config: its config.json. tokenizer: the folder or hub id that its tokenizer is in.
            tensors: of the checkpoint, by name. vision_tower: what the model has of them.
        """
        buffers = {name for name in tensors if is_old_buffer(name)}
        inside = {name for name in tensors if "vision_tower." in name} - buffers
        placed = {name for name in inside if tower_place(name, vision_tower)}
        leftover = {name: tensors[name] for name in sorted(buffers | (inside - placed))}
        return cls(config, _files(tokenizer), sorted(placed), leftover)

    @classmethod
    def kept_in(cls, name: str) -> "SourceMetadata | None":
        """What `save` left in a converted checkpoint, or None where it did not."""
        config = find_file(name, f"{FOLDER}/config.json")
        if config is None:
            return None
        folder = Path(config).parent
        names = folder / _TOWER_NAMES
        leftover = folder / _LEFTOVER
        headers = read_headers(leftover) if leftover.is_file() else {}
        return cls(
            read_json(config),
            _files(str(folder)),
            json.loads(names.read_text(encoding="utf-8")) if names.is_file() else [],
            {name: LazyTensor.stored(header) for name, header in headers.items()},
        )

    def save(self, folder: Path, dtype: torch.dtype | None) -> None:
        """Writes it into a converted checkpoint's folder."""
        inner = folder / FOLDER
        inner.mkdir()
        write_json(inner / "config.json", self.config)
        self.copy_files(inner)
        if self.tower_names:
            write_json(inner / _TOWER_NAMES, self.tower_names)
        if self.leftover:
            write_tensors(inner / _LEFTOVER, self.leftover, dtype)

    def copy_files(self, folder: Path) -> None:
        """Copies tokenizer and generation settings."""
        for name, path in self.files.items():
            shutil.copyfile(path, folder / name)


def write_json(path: Path, content: Any) -> None:
    """Writes JSON as LLaVA's checkpoints have it."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _files(name: str) -> dict[str, Path]:
    return {file: Path(path) for file in _KEPT_FILES if (path := find_file(name, file))}
