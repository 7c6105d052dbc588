"""The original LLaVA's LoRA, put onto the model that its projector and its base make up."""

from typing import Any

from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from transformers import LlavaForConditionalGeneration

from llava_s2.errors import InputError, one_line
from llava_s2.formats.adapters import adapter_tensors, check_scale
from llava_s2.formats.identify import Checkpoint
from llava_s2.formats.tensor_names import full_name, locate, tower_place
from llava_s2.s2 import S2VisionModel
from llava_s2.weight_files import find_file, list_names, read_json

_PEFT = "base_model.model."


def apply_llava_lora(
    model: LlavaForConditionalGeneration, checkpoint: Checkpoint, *, merge: bool
) -> LlavaForConditionalGeneration:
    """Adds the original LLaVA's LoRA to the language model and to the vision tower.

    LLaVA picks the adapted layers by short names (q_proj …), which the tower has too. It trains with the tower frozen,
    so there the LoRA weights usually are zero, but a checkpoint may hold others and its answers then depend on them.
    """
    name = checkpoint.name
    settings = read_json(str(find_file(name, "adapter_config.json")))
    if settings.get("peft_type", "LORA") != "LORA":
        raise InputError(f"{name}/adapter_config.json: peft_type {settings['peft_type']!r}, but only LORA is supported")
    check_scale(name, settings)
    modules = {module_name for module_name, _ in model.named_modules()}
    in_tower = {module.removeprefix("model.vision_tower.") for module in modules}
    tensors = {}
    for key, tensor in adapter_tensors(name).items():
        component, inner = locate(key)
        if component == "vision_tower":
            module, dot, weight = inner.partition(".lora_")
            place = tower_place(module, in_tower)
            if place is None and isinstance(model.model.vision_tower, S2VisionModel):
                continue  # a block after the feature layer, which the tower does not keep
            inner = (place or module) + dot + weight
        tensors[_PEFT + full_name(component, inner, "transformers")] = tensor
    # Named one by one, because LLaVA's short names (q_proj …) would match the vision tower's layers too.
    targets = sorted({key.split(".lora_")[0].removeprefix(_PEFT) for key in tensors if ".lora_" in key})
    listed = settings.get("target_modules")
    if isinstance(listed, list) and settings.get("layers_to_transform") is None:
        inside = {place for place in modules if place.startswith("model.language_model.")}
        wanted = {place for place in inside if place.rpartition(".")[2] in listed} | set(targets)
        halves = {f"{place}.lora_{half}.weight" for place in wanted for half in "AB"}
        if missing := {half for half in halves if _PEFT + half not in tensors}:
            raise InputError(
                f"{name}: the adapter lacks tensors that its adapter_config.json lists: {list_names(missing)}"
            )
    known = {key: settings[key] for key in LoraConfig.__dataclass_fields__ if key in settings}
    known.pop("base_model_name_or_path", None)  # names a folder, not the model object that PEFT compares it with
    try:
        adapted: Any = get_peft_model(model, LoraConfig(**{**known, "target_modules": targets, "inference_mode": True}))
        report: Any = set_peft_model_state_dict(adapted, tensors)
    except Exception as error:  # PEFT's and those of the packages that a config asks for
        raise InputError(
            f"{name}: the adapter does not fit its adapter_config.json or its base ({one_line(error)})"
        ) from error
    if report.unexpected_keys:
        raise InputError(
            f"{name}: the adapter holds what the model does not have: {list_names(report.unexpected_keys)}"
        )
    if lacking := [key for key in report.missing_keys if ".lora_" in key or ".modules_to_save." in key]:
        raise InputError(f"{name}: the adapter lacks tensors that its adapter_config.json lists: {list_names(lacking)}")
    return (adapted.merge_and_unload() if merge else adapted.get_base_model()).eval()
