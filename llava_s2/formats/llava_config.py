"""LLaVA's flat config.json: what it says of the vision side, and the chat template that goes with it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llava_s2.errors import InputError
from llava_s2.model.templates import LLAVA_NAMES, OWN, TEMPLATES, with_image_start_end
from llava_s2.weight_files import list_names

# What the original code takes where a key is absent.
DEFAULTS: dict[str, Any] = {
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "mm_projector_type": "linear",
    "mm_use_im_start_end": False,
    "mm_use_im_patch_token": False,
    "image_aspect_ratio": "square",
    "s2": False,
}
# What of a flat config.json only VILA writes.
_VILA = ("vision_resolution", "interpolate_mode", "num_video_frames", "drop_path_rate", "llm_cfg", "vision_tower_cfg")
S2_SCALES = "336,672,1008"
_LLAMA_VOCABULARY = range(32000, 32064)  # of Llama 1 and 2, and with LLaVA's own tokens and padding
_KNOWN_NAMES = {"vicuna": "vicuna_v1", "llava-v1.5": "vicuna_v1", "llama-2": "llama_2", "llama2": "llama_2"}


@dataclass(frozen=True)
class LlavaSettings:
    """What the original's config.json says beside its language model.

    Attributes:
        scales: image sides in pixels, ascending; None of a single-scale checkpoint, which has the tower's own.
        vision_tower: the tower's name. feature_layer: the hidden state that is read.
        takes_cls: whether the tower's CLS token is among the visual tokens. is_vila: whether VILA wrote it.
        projector_type: ``linear``, ``mlp2x_gelu`` … image_aspect_ratio: ``pad``, ``square`` or ``resize``.
        image_markers: whether an image stands between two tokens of its own. patch_token: whether the tokenizer has
            ``<im_patch>``.
    """

    scales: list[int] | None
    vision_tower: str
    feature_layer: int
    takes_cls: bool
    is_vila: bool
    projector_type: str
    image_aspect_ratio: str
    image_markers: bool
    patch_token: bool

    @classmethod
    def read(cls, config: Mapping[str, Any], source: str) -> "LlavaSettings":
        """Reads a config.json.

        Raises:
            InputError: a value that the original, or a stock LLaVA, cannot have; it names ``source``.
        """
        said = {key: config.get(key, value) for key, value in DEFAULTS.items()}
        sides = parse_scales(config.get("s2_scales", S2_SCALES), f"{source}: s2_scales") if said["s2"] else None
        scales = None if sides is None else sorted(sides)
        feature = said["mm_vision_select_feature"]
        if feature not in ("patch", "cls_patch"):
            raise InputError(f"{source}: mm_vision_select_feature {feature!r} is not known; it is patch or cls_patch")
        ratio = said["image_aspect_ratio"] or "square"
        if ratio not in ("pad", "square", "resize"):
            raise InputError(
                f"{source}: image_aspect_ratio {ratio!r} is not supported; it can be pad, square or resize"
            )
        return cls(
            scales,
            config["mm_vision_tower"],
            said["mm_vision_select_layer"],
            feature == "cls_patch",
            any(key in config for key in _VILA),
            said["mm_projector_type"],
            ratio,
            bool(said["mm_use_im_start_end"]),
            bool(said["mm_use_im_patch_token"]),
        )

    def select_strategy(self, prefix_tokens: int) -> Literal["default", "full"]:
        """``mm_vision_select_feature`` as the strategy of transformers, which with ``default`` drops one token.

        ``patch`` drops the CLS token. Of a tower without one (SigLIP) LLaVA and LLaVA-NeXT keep all patches, while
        VILA drops the first. An S2 tower gives patches alone.

        Args:
            prefix_tokens: the tower's, before its patches.
        """
        if self.scales or self.takes_cls:
            return "full"
        return "default" if prefix_tokens or self.is_vila else "full"


def parse_scales(given: str | list[int], source: str) -> list[int]:
    """Image sides in pixels of ``"336,672,1008"``, in their order.

    Raises:
        InputError: they are no such numbers; the message begins with ``source``, a flag or a key of a file.
    """
    try:
        return [int(side) for side in (given.split(",") if isinstance(given, str) else given)]
    except (AttributeError, TypeError, ValueError):
        raise InputError(f"{source} {given}: must be sides in pixels, such as 336,672,1008") from None


def projector_fault(
    shapes: Mapping[str, tuple[int, ...]], vision_size: int | None, text_size: int | None
) -> str | None:
    """Why a projector does not go between a tower and a language model, with the way out; None where it does.

    Args:
        shapes: of ``linear_1.weight`` and ``linear_2.weight``, (outputs, inputs).
        vision_size: width of the tower's features. text_size: the language model's. None is not known.
    """
    columns, rows = shapes["linear_1.weight"][1], shapes["linear_2.weight"][0]
    if vision_size is not None and columns != vision_size:
        way_out = "check s2_scales and the vision tower"
        if vision_size % columns == 0:
            way_out = (
                "it is a single-scale projector: load it as that (without s2 in config.json), and widen it with "
                "`llava-s2 train … --widen_from`"
            )
        return f"the projector takes features {columns} wide, but the vision tower gives {vision_size}; {way_out}"
    if text_size is not None and rows != text_size:
        return f"the projector gives {rows} values a token, but the language model takes {text_size}"
    return None


def projector_layers(tensors: Mapping[str, Any], kind: str, source: str) -> str:
    """The activation between a projector's layers, ``linear`` where LLaVA's projector is a single layer.

    Args:
        tensors: the projector's, by name; see `Components`. kind: mm_projector_type.

    Raises:
        InputError: it is none that a stock LLaVA computes, or the tensors are not its own.
    """
    if kind in ("linear", "mlp1x_gelu"):
        if {name.removeprefix("linear_1.") for name in tensors} == {"weight", "bias"}:
            return "linear"
    elif kind == "mlp2x_gelu":
        if set(tensors) == {f"linear_{number}.{name}" for number in (1, 2) for name in ("weight", "bias")}:
            return "gelu"
    else:
        raise InputError(
            f"{source}: mm_projector_type {kind!r} is not what the stock LLaVA can compute; it can linear and "
            "mlp2x_gelu, for its projector is two linear layers with one activation between them"
        )
    raise InputError(
        f"{source}: mm_projector_type is {kind}, but the projector's tensors are {list_names(tensors) or 'missing'}"
    )


def llava_template(
    config: Mapping[str, Any], names: list[str], tokenizer_template: str | None, asked: str | None = None
) -> str:
    """The chat template of a checkpoint in the original's format, which has no place for it.

    It is, in this order: the one asked for; what config.json names; what the checkpoint or its language model are
    called; the tokenizer's own; and Vicuna's, LLaVA's default, for a Llama with the vocabulary of Llama 1 and 2.

    Args:
        config: its config.json. names: of the checkpoint and of what it was made from.
        tokenizer_template: Jinja text in the tokenizer's files. asked: a name or Jinja text.

    Returns:
        A name for ``find_template``, or Jinja text.

    Raises:
        InputError: none of these says.
    """
    said = config.get("version") or config.get("conv_version")
    called = " ".join(Path(name).name for name in [*names, str(config.get("_name_or_path", ""))]).lower()
    known = next((template for name, template in _KNOWN_NAMES.items() if name in called), None)
    is_llama = config["model_type"] == "llava_llama" and config.get("vocab_size", 32000) in _LLAMA_VOCABULARY
    found = asked or (said if said in TEMPLATES or said in LLAVA_NAMES else None)
    if found is None and not is_llama:  # a name such as "llava-v1.5" means Vicuna on Llama 2 alone
        known = None
    found = found or known or (OWN if tokenizer_template else None) or ("vicuna_v1" if is_llama else None)
    if found is None:
        source = names[0] if names else "config.json"
        raise InputError(
            f"{source}: LLaVA's format does not say which chat template it was trained with, and neither does the "
            f"tokenizer of its {config['model_type'].removeprefix('llava_')}; name it with --template: "
            f"{', '.join(TEMPLATES)}, own or a Jinja file"
        )
    found = LLAVA_NAMES.get(found, found)
    marked = config.get("mm_use_im_start_end", False)
    return with_image_start_end(TEMPLATES[found]) if marked and found in TEMPLATES else found
