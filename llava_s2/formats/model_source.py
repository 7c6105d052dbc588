"""The flags that say which model to load, the same wherever a command takes one."""

import argparse
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_s2.model.quantizations import BITSANDBYTES, INT8

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

DTYPES = ("auto", "float32", "bfloat16", "float16")
_SAMPLED_BYTES = 1 << 20


@dataclass(frozen=True)
class ModelSource:
    """A checkpoint and how to load it; the fields are ``load_pretrained``'s arguments.

    Attributes:
        model, base, vision_tower: folders or hub ids.
        dtype: one of ``DTYPES``; ``auto`` is the checkpoint's own on a GPU and float32 on a CPU, where half
            precision is slower.
        template: name of a conversation template to use in place of the checkpoint's own.
        quantization: one of ``BITSANDBYTES`` or ``INT8``, or None.
    """

    model: str
    base: str | None = None
    vision_tower: str | None = None
    dtype: str = "auto"
    template: str | None = None
    quantization: str | None = None
    replace_vision_tower: bool = False

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> "ModelSource":
        """Reads the flags of ``add_model_arguments``."""
        return cls(
            args.model,
            args.base,
            args.vision_tower,
            args.dtype,
            args.template,
            args.quantization,
            args.replace_vision_tower,
        )

    def load(self) -> "tuple[LlavaForConditionalGeneration, LlavaProcessor]":
        """Loads the model and its processor, on accelerators where there are any, each process on its own.

        Raises:
            InputError: see ``load_pretrained``.
        """
        from llava_s2.formats.load import load_pretrained
        from llava_s2.s2.packed_linear import pack_frozen

        model, processor = load_pretrained(
            self.model,
            self.base,
            vision_tower=self.vision_tower,
            replace_vision_tower=self.replace_vision_tower,
            dtype=self._dtype(),
            device_map=_device_map(),
            quantization=self.quantization,
            template=self.template,
        )
        return pack_frozen(model.requires_grad_(False)), processor

    def fingerprint(self) -> dict[str, Any]:
        """What identifies this source, as JSON values: the fields, and a checksum of each folder's content."""
        from llava_s2.model.embedded import resolve_model

        parts = {"model": self.model, "base": self.base, "vision_tower": self.vision_tower}
        folders = {**parts, "model": resolve_model(self.model)}
        checksums = {
            f"{key}_checksum": folder_checksum(Path(part))
            for key, part in folders.items()
            if part and Path(part).is_dir()
        }
        quantized: dict[str, Any] = {} if self.quantization is None else {"quantization": self.quantization}
        if self.replace_vision_tower:
            quantized["replace_vision_tower"] = True
        return {**parts, "dtype": self._dtype(), "template": self.template, **quantized, **checksums}

    def revisions(self) -> dict[str, str]:
        """Of the parts that came from the hub, the commit that is in the local cache."""
        from huggingface_hub import try_to_load_from_cache

        found = {}
        for key, part in (("model", self.model), ("base", self.base), ("vision_tower", self.vision_tower)):
            if not part or Path(part).exists() or part.count("/") != 1:
                continue
            for file in ("config.json", "adapter_config.json"):
                if isinstance(path := try_to_load_from_cache(part, file), str):
                    found[key] = Path(path).parent.name  # …/snapshots/COMMIT/config.json
                    break
        return found

    def _dtype(self) -> str:
        import torch

        return "float32" if self.dtype == "auto" and not torch.cuda.is_available() else self.dtype


def _device_map() -> str | dict[str, int] | None:
    import torch

    if not torch.cuda.is_available():
        return None
    own = os.environ.get("LOCAL_RANK")  # set by torchrun and accelerate
    return "auto" if own is None else {"": int(own) % torch.cuda.device_count()}


def add_model_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Adds ``--model``, ``--base``, ``--vision_tower``, ``--dtype``, ``--template`` and ``--quantization``."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", required=required, metavar="M", help="checkpoint or adapter: a folder, a hub id or embedded"
    )
    add_part_arguments(group)
    group.add_argument(
        "--dtype",
        choices=DTYPES,
        default="auto",
        help="of the weights (default: the checkpoint's own on a GPU, float32 on a CPU)",
    )
    group.add_argument("--template", metavar="NAME", help="conversation template, if not the checkpoint's own")
    group.add_argument(
        "--quantization",
        choices=BITSANDBYTES + INT8,
        help="of the language model: 4bit or 8bit on a GPU, int8 on a CPU (int8-all: tower and projector too)",
    )


def add_part_arguments(parser: "argparse._ActionsContainer") -> None:
    """Adds ``--base`` and ``--vision_tower``: parts that are elsewhere than a checkpoint says."""
    parser.add_argument("--base", metavar="B", help="model under an adapter or projector, if not the one it names")
    parser.add_argument("--vision_tower", metavar="T", help="vision tower, where the checkpoint does not hold it")
    parser.add_argument(
        "--replace_vision_tower", action="store_true", help="use --vision_tower although the checkpoint holds one"
    )


def positive(text: str) -> int:
    """Parses a flag that counts something: a whole number, 1 or more."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


def folder_checksum(folder: Path) -> str:
    """Of the files' names and sizes and of both ends of each file: weights of gigabytes are not read whole."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            digest.update(file.read(_SAMPLED_BYTES))
            file.seek(max(size - _SAMPLED_BYTES, 0))
            digest.update(file.read(_SAMPLED_BYTES))
    return digest.hexdigest()[:16]
