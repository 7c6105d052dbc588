"""What kind of checkpoint a folder or hub id holds, recognised by its contents alone.

Nothing here allocates weights: tensors are memory-mapped views of the files. torch is imported only where tensors are,
so that `llava-s2 inspect` answers at once.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llava_s2.errors import InputError
from llava_s2.model.embedded import resolve_model
from llava_s2.weight_files import WEIGHT_FILES, ask_hub, find_file, read_json

# What LLaVA's LoRA leaves beside the adapter: the projector, and what else was trained whole.
TRAINED_FILES = ("non_lora_trainables.bin", "non_lora_trainables.safetensors")

Kind = Literal["llm", "hf", "adapter", "llava_full", "llava_lora", "llava_projector"]


@dataclass(frozen=True)
class Checkpoint:
    """A recognised checkpoint.

    Attributes:
        name: the folder or hub id.
        kind: ``llm`` a language model; ``hf`` a ``LlavaForConditionalGeneration``, this project's or a single-scale
            one; ``adapter`` a PEFT adapter of such a model; and the original LLaVA's formats: ``llava_full``,
            ``llava_lora`` (adapter and ``non_lora_trainables.bin``), ``llava_projector`` (``mm_projector.bin``).
        config: its ``config.json``; empty for an adapter, whose base has it (but for those of this project's first
            releases).
    """

    name: str
    kind: Kind
    config: dict[str, Any]


def identify(name: str | Path) -> Checkpoint:
    """Recognises what kind of checkpoint a folder or hub id, or ``embedded``, is. No weights are loaded.

    Raises:
        InputError: the folder does not exist, or has no config, no weights, or not enough to be of any kind.
    """
    name = resolve_model(name)
    if name.endswith(("mm_projector.bin", *TRAINED_FILES)) and Path(name).is_file():
        name = str(Path(name).parent)
    if not Path(name).exists():
        ask_hub(name)
    config_file = find_file(name, "config.json")
    if config_file is None:
        if find_file(name, "adapter_config.json"):
            return Checkpoint(name, "adapter", {})
        raise InputError(f"{name}: there is no config.json, so it is no checkpoint")
    config = read_json(config_file)
    if not isinstance(config.get("model_type"), str):
        raise InputError(f"{config_file}: names no model_type, so what it is the config of is not known")
    is_llava = config["model_type"].startswith("llava_") and "mm_vision_tower" in config
    if find_file(name, "adapter_config.json"):
        if is_llava:
            if any(find_file(name, file) for file in TRAINED_FILES):
                return Checkpoint(name, "llava_lora", config)
            raise InputError(
                f"{name}: non_lora_trainables.bin is missing beside adapter_config.json; it holds the projector, "
                "without which the adapter sees nothing"
            )
        if config.get("model_type") == "llava":
            return Checkpoint(name, "adapter", config)
        raise InputError(
            f"{name}: an adapter of a language model alone ({config.get('model_type')}), not of a LLaVA model"
        )
    if not any(find_file(name, file) for file in WEIGHT_FILES):
        if is_llava and find_file(name, "mm_projector.bin"):
            return Checkpoint(name, "llava_projector", config)
        raise InputError(f"{name}: there are no weights in it (looked for {', '.join(WEIGHT_FILES)})")
    if is_llava:
        return Checkpoint(name, "llava_full", config)
    return Checkpoint(name, "hf" if config.get("model_type") == "llava" else "llm", config)
