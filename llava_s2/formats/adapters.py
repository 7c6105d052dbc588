"""PEFT adapters of a LLaVA: put onto their base whole or not at all, and only onto the base they were trained over."""

from collections.abc import Iterable, Mapping
from typing import Any

from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from llava_s2.errors import InputError, one_line
from llava_s2.weight_files import check_numbers, find_file, first_line, list_names, read_json, read_tensors

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")


def adapter_tensors(name: str) -> dict[str, Tensor]:
    """The tensors of an adapter's folder or hub id. Raises InputError where it has none, or a damaged file."""
    for file in ADAPTER_FILES:
        if path := find_file(name, file):
            tensors = read_tensors(path)
            check_numbers(name, tensors)
            return tensors
    raise InputError(f"{name}: adapter_model.safetensors is missing beside adapter_config.json")


def check_scale(name: str, settings: Mapping[str, Any]) -> None:
    """Raises InputError where an adapter_config.json leaves out what PEFT would take a number of its own for."""
    lacking = [
        key for key in ("r", "lora_alpha") if settings.get("peft_type", "LORA") == "LORA" and not settings.get(key)
    ]
    if lacking:
        raise InputError(
            f"{name}/adapter_config.json: has no {' and no '.join(lacking)}, on which the adapter's strength "
            "depends; write it there as it was in training"
        )


def attach(model: LlavaForConditionalGeneration, name: str) -> PeftModel:
    """Puts an adapter onto its base model, in place.

    Args:
        model: the base. name: the adapter's folder or hub id.

    Raises:
        InputError: the adapter lacks tensors that its adapter_config.json lists, holds others, or does not fit.
    """
    stored = adapter_tensors(name)
    check_scale(name, read_json(str(find_file(name, "adapter_config.json"))))
    try:
        config = PeftConfig.from_pretrained(name)
        if str(how := getattr(config, "init_lora_weights", "")).startswith("pissa_niter"):
            raise InputError(
                f"{name}: {how} took a part of the base's weights away that was drawn at random and is not recorded; "
                "save the adapter with PEFT's path_initial_model_for_weight_conversion"
            )
        config.inference_mode = True
        trained_over = config.base_model_name_or_path
        config.base_model_name_or_path = model.config._name_or_path  # PEFT warns where this is not the model's own
        adapted: Any = get_peft_model(model, config)
        adapted.peft_config["default"].base_model_name_or_path = trained_over
        whole = {key for key in get_peft_model_state_dict(adapted, save_embedding_layers=False) if ".lora_" not in key}
        if missing := whole - stored.keys():
            raise InputError(f"{name}: the adapter lacks tensors that its adapter_config.json lists: {_list(missing)}")
        report: Any = adapted.load_adapter(name, "default")
    except InputError:
        raise
    except Exception as error:  # PEFT's and those of the packages that a config asks for
        raise InputError(f"{name}: the adapter does not fit its base model ({one_line(error)})") from error
    if unknown := report.unexpected_keys:
        raise InputError(f"{name}: the adapter holds tensors that the model has no place for: {_list(unknown)}")
    if missing := report.missing_keys:
        raise InputError(f"{name}: the adapter lacks tensors that its adapter_config.json lists: {_list(missing)}")
    if not hasattr(adapted, "merge_and_unload"):
        raise InputError(f"{name}: a {config.peft_type} adapter cannot be merged; use one of layers, such as LoRA")
    return adapted.eval()


def apply_adapter(
    model: LlavaForConditionalGeneration, name: str, options: dict[str, Any]
) -> LlavaForConditionalGeneration:
    """The model with the adapter: merged, or attached where rounding the sum to 4 bits would lose it.

    Args:
        model: the base. name: the adapter's folder or hub id. options: those that the base was loaded with.
    """
    adapted: Any = attach(model, name)
    if "quantization_config" in options:
        return adapted.get_base_model().eval()
    try:
        return adapted.merge_and_unload().eval()
    except (NotImplementedError, RuntimeError) as error:
        raise InputError(f"{name}: the adapter cannot be merged ({first_line(error)})") from error


def _list(names: Iterable[str]) -> str:
    return list_names([name.removeprefix("base_model.model.").replace(".default", "") for name in names])
