"""What the numbers of a training run depend on, as JSON values that two runs can be compared by."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from transformers import TrainingArguments

from llava_s2.data.cache import checksum
from llava_s2.data.record_shapes import images_of
from llava_s2.data.training_records import TrainingRecords
from llava_s2.data.validation_error import ValidationError
from llava_s2.data.verdict import data_files
from llava_s2.formats.configs import own_scales
from llava_s2.formats.model_source import folder_checksum
from llava_s2.model.embedded import resolve_language_model, resolve_model, resolve_vision_tower
from llava_s2.s2 import S2VisionConfig
from llava_s2.train.arguments import OF_VISION, RecipeArguments
from llava_s2.train.parts import TrainableModules
from llava_s2.train.sampler import order_seed

# Flags that change no number of a run: what it computes with, what it tells, and what happens to unusable records.
_NO_EFFECT = {
    *(
        "dry_run",
        "dry_run_gpus",
        "peak_tflops",
        "packing",
        "attn_implementation",
        "cache_tower_features",
        "cache_tower_features_gb",
    ),
    *("on_bad_sample", "max_bad_share", "eval_task", "eval_data", "eval_limit", "eval_data_path", "eval_image_folder"),
    *("overwrite_output_dir", "early_stopping_patience"),
}
# Flags that are told by what they name or lead to, in `fingerprint` itself.
_BY_CONTENT = {
    *("model_name_or_path", "widen_from", "base", "vision_tower", "pretrain_mm_mlp_adapter", "data_path"),
    *("image_folder", "template", "tune_mm_mlp_adapter", "lora_enable", "freeze_mm_mlp_adapter"),
    "unfreeze_mm_vision_tower",
}
_TRAINING = (
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "optim", "optim_args"),
    *("weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "label_smoothing_factor"),
    *(
        "optim_target_modules",
        "neftune_noise_alpha",
        "seed",
        "data_seed",
        "train_sampling_strategy",
        "dataloader_drop_last",
        "bf16",
        "fp16",
    ),
    *("average_tokens_across_devices", "ignore_data_skip", "load_best_model_at_end"),
)
_IMAGES = 1000  # records, spread over the data, whose images are compared


def fingerprint(
    stage: str,
    recipe: RecipeArguments,
    training: TrainingArguments,
    components: TrainableModules,
    template: str,
    checked: TrainingRecords,
    projector: dict[str, Tensor] | None,
    vision_config: S2VisionConfig | None,
) -> dict[str, Any]:
    """All that decides a run's losses and weights, by name.

    Models, data and images count by their content, so a folder may move; other processes are no other run as long as
    the global batch stays.

    Args:
        template: the conversation template, or its name.
        checked: the records, of which a few images are looked at.
        projector: what training starts with, if it was given.
        vision_config: of the tower, where training starts from a language model and a tower.
    """
    is_llm = recipe.vision_tower is not None
    resolve = resolve_language_model if is_llm else resolve_model
    named: dict[str, Any] = {
        "stage": stage,
        "trains": components.describe(),
        "model": _model(resolve(recipe.model_name_or_path)),
        "base": _model(recipe.base),
        "vision tower": _model(resolve_vision_tower(recipe.vision_tower) if recipe.vision_tower else None),
        "projector to start with": None if projector is None else _tensors(projector),
        "data": [file for path in _as_list(recipe.data_path) for file in _data_files(path)],
        "images": _images(checked),
        "template": template,
        "global batch": training.train_batch_size * training.world_size * training.gradient_accumulation_steps,
    }
    if training.load_best_model_at_end or recipe.early_stopping_patience:  # they choose by it
        named["evaluation data"] = [file for path in recipe.eval_data_path or [] for file in _data_files(path)]
    if training.dataloader_drop_last:  # how much is dropped depends on the batch of all processes
        named["batch of all processes"] = training.train_batch_size * training.world_size
    flags = {name: value for name, value in asdict(recipe).items() if name not in _NO_EFFECT | _BY_CONTENT}
    if not components.lora:
        flags = {name: value for name, value in flags.items() if not name.startswith("lora_")}
    flags |= {name: getattr(training, name, None) for name in _TRAINING}
    flags = {name: None if value in ("", [], {}) else value for name, value in flags.items()}
    flags |= _as_meant(recipe, training, vision_config)
    if training.deepspeed:
        flags["max_grad_norm"] = training.hf_deepspeed_config.get_value("gradient_clipping")
    if not _is_constant(training):  # the rate of every step depends on how many there will be
        flags |= run_length(training)
    return json.loads(json.dumps({**named, **flags}, default=str))


def _as_meant(
    recipe: RecipeArguments, training: TrainingArguments, vision_config: S2VisionConfig | None
) -> dict[str, Any]:
    """Flags that may be left out, as what they then stand for: a default that is written out makes no other run."""
    if vision_config is None:  # a LLaVA brings its own, and others are refused
        scales = own_scales(recipe.model_name_or_path, recipe.vision_tower) if not recipe.s2_scales else recipe.scales
        tower: dict[str, Any] = dict.fromkeys(OF_VISION)
    else:
        scales = vision_config.scales
        tower = {
            "mm_vision_select_layer": vision_config.feature_layer,
            "s2_resize_output_to_idx": vision_config.resize_output_to_idx % len(scales),
            "image_aspect_ratio": recipe.image_aspect_ratio or "pad",
            "mm_projector_type": recipe.mm_projector_type or "mlp2x_gelu",
        }
    rate = training.learning_rate
    return tower | {
        "s2_scales": ",".join(map(str, scales)),
        "data_seed": order_seed(training),
        "data_weights": recipe.data_weights or [1.0] * len(recipe.data_path),
        "mm_projector_lr": rate if recipe.mm_projector_lr is None else recipe.mm_projector_lr,
        "mm_vision_tower_lr": rate if recipe.mm_vision_tower_lr is None else recipe.mm_vision_tower_lr,
    }


def run_length(training: TrainingArguments) -> dict[str, float]:
    """The flag that says when a run ends."""
    if training.max_steps > 0:
        return {"max_steps": training.max_steps}
    return {"num_train_epochs": training.num_train_epochs}


def differences(recorded: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Says of each value in which a recorded run differs from the wanted one. What only one of them knows is new."""
    told = []
    for name in recorded.keys() & wanted.keys():
        there, here = recorded[name], wanted[name]
        if there == here:
            continue
        if name in ("data", "evaluation data"):
            told.append(f"{name} ({_data_difference(there, here)})")
        elif name in ("model", "base", "vision tower", "projector to start with", "images"):
            told.append(f"{name} ({_short(there)} there, {_short(here)} here)")
        elif name == "template":
            told.append("template")
        else:
            told.append(f"{name} ({there} there, {here} here)")
    # Where a run ends is named by one of two flags.
    lengths = [
        {name: run[name] for name in ("max_steps", "num_train_epochs") if name in run} for run in (recorded, wanted)
    ]
    if all(lengths) and lengths[0].keys() != lengths[1].keys():
        told.append(
            " and ".join(
                f"{name} {value} {place}"
                for length, place in zip(lengths, ("there", "here"), strict=True)
                for name, value in length.items()
            )
        )
    return sorted(told)


def _is_constant(training: TrainingArguments) -> bool:
    kind = str(getattr(training.lr_scheduler_type, "value", training.lr_scheduler_type))
    return kind == "constant" or (
        kind == "constant_with_warmup" and (training.warmup_steps >= 1 or not training.warmup_steps)
    )


def _model(name: str | None) -> str | None:
    """What a folder or file holds, or of a hub id the commit that is in the cache."""
    if name is None:
        return None
    path = Path(name)
    if path.is_dir():
        return f"{path.name} {folder_checksum(path)}"
    if path.is_file():
        return f"{path.name} {checksum(path)}"
    from huggingface_hub import try_to_load_from_cache

    if name.count("/") == 1 and ":" not in name:
        for file in ("config.json", "adapter_config.json"):
            if isinstance(found := try_to_load_from_cache(name, file), str):
                return f"{name} {Path(found).parent.name}"  # …/snapshots/COMMIT/config.json
    return name


def _tensors(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode() + tensor.detach().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _data_files(path: str) -> list[list[Any]]:
    """Name, size and checksum of every file that a ``--data_path`` leads to."""
    return [[file.name, file.stat().st_size, checksum(file)] for file in data_files(path)]


def _images(checked: TrainingRecords) -> str:
    """A checksum of the image files of up to 1,000 records, wherever they lie."""
    digest = hashlib.sha256()
    records = checked.records
    with_images = np.flatnonzero(checked.images)
    spread = np.linspace(0, len(with_images) - 1, min(len(with_images), _IMAGES)).astype(int)
    for index in with_images[spread].tolist():
        source, inner = records.locate(index)
        try:
            for image in images_of(source.records[inner]):
                digest.update(hashlib.sha256(source.files.read(image)).digest())
        except ValidationError:
            digest.update(b"unusable")
    return digest.hexdigest()[:16]


def _data_difference(there: list[list[Any]], here: list[list[Any]]) -> str:
    names = [[name for name, *_ in files] for files in (there, here)]
    if names[0] != names[1]:
        return f"{', '.join(names[0]) or 'none'} there, {', '.join(names[1]) or 'none'} here"
    changed = [new[0] for old, new in zip(there, here, strict=True) if old != new]
    return f"the content of {', '.join(changed)} has changed"


def _short(value: str | None) -> str:
    return "none" if value is None else value


def _as_list(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)
