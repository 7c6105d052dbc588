"""The LoRA of a PEFT adapter without what stands beside it, as servers of many adapters over one model take it."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from llava_s2.errors import InputError
from llava_s2.files import new_folder
from llava_s2.formats.adapters import adapter_tensors, check_scale
from llava_s2.formats.base_record import BaseRecord, check_base, find_base
from llava_s2.formats.identify import identify
from llava_s2.formats.lazy_tensors import lazy_tensors
from llava_s2.formats.tensor_names import locate, split
from llava_s2.weight_files import find_file, list_names, read_json


def write_lora_alone(adapter: str | Path, dst: str | Path, base: str | Path | None = None) -> None:
    """Writes the LoRA matrices of the language model alone, in PEFT's format.

    vLLM's ``--lora-modules`` refuses an adapter with ``modules_to_save``, and this project's hold the projector. That
    is left out where it is the base's own (``--freeze_mm_mlp_adapter``).

    Args:
        adapter: a folder or hub id. dst: the new folder; must not exist, or be empty.
        base: the full checkpoint that is served, in place of the one that the adapter names.

    Raises:
        InputError: the adapter holds more than the language model's LoRA, or the base is another model or no full
            checkpoint.
    """
    checkpoint = identify(adapter)
    name = checkpoint.name
    if checkpoint.kind != "adapter" or checkpoint.config:
        raise InputError(f"{name}: --to lora takes a PEFT adapter; merge this one with: llava-s2 merge")
    settings = read_json(str(find_file(name, "adapter_config.json")))
    check_scale(name, settings)
    record = BaseRecord.load(name)
    place = str(base) if base is not None else find_base(name, record)
    if not isinstance(place, str) or identify(place).kind != "hf":
        raise InputError(
            f"{name}: --to lora takes a full checkpoint under it, in the native format; name it with --base"
        )
    check_base(name, record, place, None)

    stored = adapter_tensors(name)
    lora = {key: tensor for key, tensor in stored.items() if ".lora_" in key}
    elsewhere = {key for key in lora if locate(_plain(key))[0] != "language_model"}
    beside = {locate(_plain(key)): tensor for key, tensor in stored.items() if key not in lora}
    own = split(lazy_tensors(place)).projector
    for (component, key), tensor in beside.items():
        if component != "projector" or key not in own or not torch.equal(own[key].read().to(tensor.dtype), tensor):
            elsewhere.add(f"{component}.{key}")
    if elsewhere or not lora:
        what = list_names(sorted(elsewhere)) if elsewhere else "no LoRA"
        raise InputError(
            f"{name}: holds {what}, so it is not the base with a LoRA on its language model alone; make one model of "
            "it with: llava-s2 merge"
        )
    with new_folder(dst) as folder:
        save_file(lora, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        settings |= {"modules_to_save": None, "base_model_name_or_path": place}
        (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _plain(key: str) -> str:
    return key.removeprefix("base_model.model.")
