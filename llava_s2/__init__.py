"""LLaVA on an S2 (Scaling on Scales) vision tower.

`load_pretrained` loads any LLaVA; `S2VisionModel` is the vision tower by itself, and `multiscale_forward` the method on
any other model; `encode_conversation` encodes a training record.

Importing the package registers the model type ``s2_vision`` with transformers' Auto classes. The command line is the
exception: it answers ``--help`` without torch, and each command imports what it uses.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

__version__ = "0.2.0"

_EXPORTS = {
    "multiscale_forward": "llava_s2.s2",
    "S2VisionConfig": "llava_s2.s2",
    "S2VisionModel": "llava_s2.s2",
    "load_pretrained": "llava_s2.formats.load",
    "encode_conversation": "llava_s2.data.conversation",
}
__all__ = [*_EXPORTS, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'llava_s2' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_EXPORTS[name]), name)
    return value


# `llava-s2 …` and `python -m llava_s2.…` (argv[0] is still "-m" while the package is imported) register later, with
# the first command that needs a model.
if not sys.argv or Path(sys.argv[0]).stem not in {"llava-s2", "-m"}:
    import_module("llava_s2.towers")
