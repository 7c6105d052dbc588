"""PEFT adapters of a LLaVA: put onto their base whole or not at all, and only onto the base they were trained over."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from llava_s2.errors import InputError
from llava_s2.formats.base_record import BaseRecord, checksum, matches
from llava_s2.formats.lazy_tensors import LazyTensor, lazy_tensors
from llava_s2.model.embedded import NAME as EMBEDDED
from llava_s2.weight_files import WEIGHT_FILES, find_file, list_names, read_json, read_tensors

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")


def adapter_tensors(name: str) -> dict[str, Tensor]:
    """The tensors of an adapter's folder or hub id. Raises InputError where it has none, or a damaged file."""
    for file in ADAPTER_FILES:
        if path := find_file(name, file):
            return read_tensors(path)
    raise InputError(f"{name}: adapter_model.safetensors is missing beside adapter_config.json")


def attach(model: LlavaForConditionalGeneration, name: str) -> PeftModel:
    """Puts an adapter onto its base model, in place.

    Args:
        model: the base. name: the adapter's folder or hub id.

    Raises:
        InputError: the adapter lacks tensors that its adapter_config.json tells of, holds others, or does not fit.
    """
    stored = adapter_tensors(name)
    try:
        config = PeftConfig.from_pretrained(name)
        config.inference_mode = True
        trained_over = config.base_model_name_or_path
        config.base_model_name_or_path = model.config._name_or_path  # PEFT warns where this is not the model's own
        adapted: Any = get_peft_model(model, config)
        adapted.peft_config["default"].base_model_name_or_path = trained_over
        whole = {key for key in get_peft_model_state_dict(adapted, save_embedding_layers=False) if ".lora_" not in key}
        if missing := whole - stored.keys():
            raise InputError(
                f"{name}: the adapter lacks tensors that its adapter_config.json tells of: {_list(missing)}"
            )
        report: Any = adapted.load_adapter(name, "default")
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        what = " ".join(str(error).split())[:300]
        raise InputError(f"{name}: the adapter does not fit its base model ({what})") from error
    if unknown := report.unexpected_keys:
        raise InputError(f"{name}: the adapter holds tensors that the model has no place for: {_list(unknown)}")
    if missing := report.missing_keys:
        raise InputError(f"{name}: the adapter lacks tensors that its adapter_config.json tells of: {_list(missing)}")
    if not hasattr(adapted, "merge_and_unload"):
        raise InputError(f"{name}: a {config.peft_type} adapter cannot be merged; use one of layers, such as LoRA")
    return adapted.eval()


def find_base(name: str, record: BaseRecord | None) -> "str | dict[str, Any]":
    """Where an adapter's base is: a folder or hub id, or the parts that it can be made of again.

    Looked for under the name in adapter_config.json, then beside the adapter, then by its parts.

    Raises:
        InputError: it is in none of these places.
    """
    named = read_json(str(find_file(name, "adapter_config.json"))).get("base_model_name_or_path")
    folder = Path(name)
    places = [named, record.name if record else None, str(folder / "base"), str(folder.parent / "base")]
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


def check_base(name: str, record: BaseRecord | None, base: str, model: LlavaForConditionalGeneration | None) -> None:
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


def _list(names: Iterable[str]) -> str:
    return list_names([name.removeprefix("base_model.model.").replace(".default", "") for name in names])
