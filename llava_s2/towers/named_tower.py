"""Vision towers that other libraries name: ``open_clip:ViT-L-14/laion2b_s32b_b82k``, ``timm:NAME``, ``mae:FILE``."""

import argparse
import logging
import re
import sys
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from llava_s2.errors import InputError
from llava_s2.towers.timm_tower import as_pretrained
from llava_s2.weight_files import first_line, list_names, read_pickle, read_tensors

_MAE = "vit_base_patch16_224.mae"  # for its normalisation; the sizes are the checkpoint's own
# What a checkpoint may hold that no feature goes through: heads, final norms, MAE's decoder.
_BESIDE = re.compile(r"(decoder\w*|mask_token|head\w*|fc\w*|classifier|norm\w*|attn_pool)(\.|$)")


@dataclass(frozen=True)
class NamedTower:
    """A tower by the name that another library gives it.

    Attributes:
        library: ``open_clip``, ``timm`` or ``mae``, whose checkpoints (MVP's are such) describe their architecture.
        architecture: the library's name for it; of open_clip also ``hf-hub:ID`` or ``local-dir:FOLDER``.
        tag: open_clip's name of pretrained weights, which says how images are normalised.
        file: a checkpoint on this machine, in place of the library's own weights.
    """

    library: str
    architecture: str
    tag: str | None = None
    file: Path | None = None

    @classmethod
    def parse(cls, name: str | Path) -> "NamedTower | None":
        """The tower that a name means; None for a folder or a hub id.

        ``open_clip:ARCH/TAG``, ``open_clip:ARCH/FILE``, ``open_clip:ARCH/TAG/FILE`` (weights from the file, normalised
        as the tag says), ``open_clip:FOLDER`` (with open_clip_config.json), ``open_clip:hf-hub:ID``; ``timm:ARCH``,
        ``timm:ARCH/FILE``; ``mae:FILE``.

        Raises:
            InputError: the library is not installed, or knows no such architecture, or there is no such file.
        """
        library, colon, rest = str(name).partition(":")
        if not colon or library not in ("open_clip", "timm", "mae"):
            return None
        needed = "open_clip" if library == "open_clip" else "timm"
        if find_spec(needed) is None:
            raise InputError(f"vision tower {name}: needs {needed}: pip install 'llava-s2[openclip]'")
        if library == "mae":
            return cls(library, _MAE, None, _file(rest, name))
        if library == "open_clip" and rest.startswith("hf-hub:"):
            return cls(library, rest)
        folder = Path(rest.removeprefix("local-dir:"))
        if library == "open_clip" and (folder / "open_clip_config.json").is_file():
            return cls(library, f"local-dir:{folder.resolve()}")
        architecture, _, place = rest.partition("/")
        if library == "timm":
            _known(architecture.partition(".")[0], _timm_names(), name)
            return cls(library, architecture, None, _file(place, name) if place else None)
        return cls(library, architecture, *_open_clip_weights(architecture, place, name))

    def __str__(self) -> str:
        parts = [None if self.library == "mae" else self.architecture, self.tag, str(self.file) if self.file else None]
        return f"{self.library}:" + "/".join(part for part in parts if part)

    @property
    def has_weights(self) -> bool:
        """Whether the name says where weights are; without them a tower can be counted but not used."""
        return self.library != "open_clip" or ":" in self.architecture or bool(self.tag or self.file)

    def config(self) -> PreTrainedConfig:
        """The tower's config; reads no weights (of a ``mae:`` file, its shapes)."""
        if self.library == "open_clip":
            with torch.device("meta"):
                model = self._open_clip(load_weights=False)
                wrapped: Any = as_pretrained(model)
                return wrapped.config
        from transformers import TimmWrapperConfig  # here, as it imports timm

        return TimmWrapperConfig(architecture=self.architecture, model_args=self._timm_arguments() or None)

    def load(self, dtype: torch.dtype) -> PreTrainedModel:
        """The tower with its weights.

        Raises:
            InputError: they are not available, or are another architecture's.
        """
        if not self.has_weights:
            import open_clip

            tags = open_clip.list_pretrained_tags_by_model(self.architecture)
            raise InputError(
                f"vision tower {self}: name its weights too: {self}/{tags[0] if tags else 'FILE.pt'}, or a file"
            )
        if self.library == "open_clip":
            clip: Any = as_pretrained(self._open_clip(load_weights=True))
            return clip.to(dtype).eval()
        from transformers import TimmWrapperModel

        config: Any = self.config()
        model: Any = TimmWrapperModel(config)
        inner = model.timm_model
        if self.file is None:
            tensors = self._timm_pretrained().state_dict()
        else:
            tensors = _timm_tensors(inner, _read(self.file), self.file)
        wanted = inner.state_dict()
        kept = {name: tensor for name, tensor in tensors.items() if name in wanted}
        left = [name for name in tensors if name not in wanted and not _BESIDE.match(name)]
        missing = [name for name in wanted if name not in kept and not _BESIDE.match(name)]
        other = [name for name, tensor in kept.items() if tensor.shape != wanted[name].shape]
        for problem, names in (("lack", missing), ("hold what it does not have:", left), ("differ in shape at", other)):
            if names:
                raise InputError(f"vision tower {self}: the weights {problem} {list_names(names)}")
        inner.load_state_dict(kept, strict=False)
        return model.to(dtype).eval()

    def image_statistics(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation by which its images are normalised, per channel, for values in 0 … 1."""
        if self.library == "open_clip":
            with torch.device("meta"):
                preprocess = self._open_clip(load_weights=False).visual.preprocess_cfg
            if self.tag:
                import open_clip

                preprocess = preprocess | (open_clip.get_pretrained_cfg(self.architecture, self.tag) or {})
        else:
            import timm

            known: Any = timm.get_pretrained_cfg(self.architecture)
            preprocess = known.to_dict()
        return [float(v) for v in preprocess["mean"]], [float(v) for v in preprocess["std"]]

    def _open_clip(self, load_weights: bool) -> Any:
        import open_clip

        source = str(self.file) if self.file else self.tag
        if not load_weights:  # which open_clip warns of
            logging.disable(logging.WARNING)
        try:
            return open_clip.create_model(
                self.architecture,
                source if load_weights else None,
                load_weights=load_weights,
                device="cpu" if load_weights else "meta",
                weights_only=True,
                pretrained_text=False,
            )
        except Exception as error:  # open_clip, torch and the hub raise whatever they meet
            raise InputError(f"vision tower {self}: {first_line(error)}") from error
        finally:
            logging.disable(logging.NOTSET)

    def _timm_pretrained(self) -> Any:
        import timm

        try:
            return timm.create_model(self.architecture, pretrained=True, num_classes=0, **self._timm_arguments())
        except Exception as error:
            raise InputError(
                f"vision tower {self}: its weights are not available ({first_line(error)}); "
                f"a file of them is named timm:{self.architecture}/FILE"
            ) from error

    def _timm_arguments(self) -> dict[str, Any]:
        return _mae_arguments(_read(self.file), self.file) if self.library == "mae" and self.file else {}


def _open_clip_weights(architecture: str, place: str, name: str | Path) -> tuple[str | None, Path | None]:
    """The tag and the file that stand after an architecture."""
    import open_clip

    _known(architecture, open_clip.list_models(), name)
    if not place:
        return None, None
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    tag, _, file = place.partition("/")
    if tag in tags:
        return tag, _file(file, name) if file else None
    if Path(place).expanduser().is_file():
        return None, Path(place).expanduser().resolve()
    raise InputError(
        f"vision tower {name}: {place} is neither a file nor weights that open_clip knows of {architecture}: "
        f"{', '.join(tags) or 'it knows none'}"
    )


def _file(path: str, name: str | Path) -> Path:
    found = Path(path).expanduser()
    if not found.is_file():
        raise InputError(f"vision tower {name}: there is no file {path or '(none is named)'}")
    return found.resolve()


def _known(architecture: str, names: list[str], name: str | Path) -> None:
    if architecture not in names:
        near = get_close_matches(architecture, names, n=3)
        hint = f"; near it are {', '.join(near)}" if near else ""
        raise InputError(f"vision tower {name}: {architecture or '(nothing)'} is not known{hint}")


def _timm_names() -> list[str]:
    import timm

    return timm.list_models()


def _read(file: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint file, out of the names that trainers nest them under."""
    # MAE's own training script puts its command line beside the weights.
    found = read_tensors(file) if file.suffix == ".safetensors" else read_pickle(file, (argparse.Namespace,))
    for key in ("state_dict", "model", "module"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict):
        raise InputError(f"{file}: holds no named tensors")
    return {name.removeprefix("module."): tensor for name, tensor in found.items() if isinstance(tensor, Tensor)}


def _timm_tensors(model: Any, tensors: dict[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Tensors under the names of a timm model, by the filter that timm has for its other forms."""
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    try:
        return convert(tensors, model) if convert else tensors
    except (KeyError, RuntimeError, ValueError, AttributeError) as error:
        raise InputError(f"{file}: not weights of {type(model).__name__} ({first_line(error)})") from error


def _mae_arguments(tensors: dict[str, Tensor], file: Path | None) -> dict[str, Any]:
    """The sizes of a ViT from its weights: MAE's (base, large, huge), and MVP's, whose small ViT has 12 heads."""
    try:
        width, _, patch, _ = tensors["patch_embed.proj.weight"].shape
        tokens = tensors["pos_embed"].shape[1] - 1
        hidden = tensors["blocks.0.mlp.fc1.weight"].shape[0]
    except (KeyError, ValueError) as error:
        raise InputError(f"{file}: not a MAE's ViT, which has patch_embed.proj.weight, pos_embed, blocks.0…") from error
    side = round(tokens**0.5)
    if side * side != tokens:
        raise InputError(f"{file}: its {tokens} position embeddings are no square grid")
    heads = {1024: 16, 1280: 16}.get(width, 12)
    return {
        "img_size": side * patch,
        "patch_size": patch,
        "embed_dim": width,
        "depth": len({name.split(".")[1] for name in tensors if name.startswith("blocks.")}),
        "num_heads": heads,
        "mlp_ratio": hidden / width,
    }
