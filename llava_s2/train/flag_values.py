"""Values of flags that no run can have: told before anything is read, and all at once."""

from math import inf
from typing import TYPE_CHECKING, Any

from llava_s2.weight_files import first_line

if TYPE_CHECKING:
    from transformers import TrainingArguments

_COUNTS = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
_AMOUNTS = ("learning_rate", "mm_projector_lr", "mm_vision_tower_lr", "weight_decay", "max_grad_norm")
_SHARES = ("adam_beta1", "adam_beta2", "label_smoothing_factor", "lora_dropout")
# Flags, the least that they can be, what they must stay below, and that in words.
_RANGES: list[tuple[tuple[str, ...], float, float, str]] = [
    ((*_COUNTS, "lora_r", "lora_alpha", "model_max_length"), 1, inf, "1 or more"),
    ((*_AMOUNTS, "dataloader_num_workers"), 0, inf, "0 or more"),
    (_SHARES, 0, 1, "0 or more, and less than 1"),
    (("seed", "data_seed"), 0, 2**32, f"from 0 to {2**32 - 1}"),
]


def impossible_values(recipe: Any, training: "TrainingArguments") -> list[str]:
    """What is wrong with the values of a run's flags, each in words of its own.

    Args:
        recipe: `RecipeArguments`.
    """
    from llava_s2.model.processor import ASPECT_RATIOS

    problems = []
    for names, least, end, words in _RANGES:
        for name in names:
            value = getattr(recipe, name, getattr(training, name, None))
            if value is not None and not least <= value < end:
                problems.append(f"--{name} {value}: must be {words}")
    if recipe.image_aspect_ratio not in (None, *ASPECT_RATIOS):
        problems.append(f"--image_aspect_ratio {recipe.image_aspect_ratio}: must be one of {', '.join(ASPECT_RATIOS)}")
    if training.max_steps < 0 and not training.num_train_epochs > 0:
        problems.append(f"--num_train_epochs {training.num_train_epochs}: leaves nothing to do")
    if training.max_steps == 0:  # Trainer would make one step
        problems.append("--max_steps 0: leaves nothing to do")
    if training.dataloader_persistent_workers and not training.dataloader_num_workers:
        problems.append("--dataloader_persistent_workers: needs --dataloader_num_workers")
    if training.metric_for_best_model not in (None, "loss", "eval_loss"):
        problems.append(f"--metric_for_best_model {training.metric_for_best_model}: eval_loss is the only one")
    if training.greater_is_better:
        problems.append("--greater_is_better True: eval_loss, by which checkpoints are chosen, is better where lower")
    if not recipe.evaluates:
        needing = ("eval_on_start", "load_best_model_at_end")
        on = [f"--{name}" for name in needing if getattr(training, name)]
        on += ["--save_strategy best"] if training.save_strategy == "best" else []
        problems += [f"{flag}: needs --eval_data_path or --eval_split" for flag in on]
    accelerator: Any = training.accelerator_config
    if accelerator.dispatch_batches or accelerator.split_batches:
        problems.append("--accelerator_config: dispatch_batches and split_batches make other batches; leave them out")
    if training.auto_find_batch_size:
        problems.append(
            "--auto_find_batch_size: would make the global batch smaller, and with it another run; lower "
            "--per_device_train_batch_size and raise --gradient_accumulation_steps by the same factor"
        )
    if training.push_to_hub:
        problems += _hub(training)
    return problems + _attention(recipe, training) + _optimization(training)


def _attention(recipe: Any, training: "TrainingArguments") -> list[str]:
    """What keeps a way of attention from being used, found by making a model of one layer without weights with it."""
    import torch
    from transformers import LlamaConfig, LlamaModel

    name = recipe.attn_implementation
    if name is None or recipe.dry_run:  # of a run elsewhere
        return []
    if name.startswith("paged|"):
        return [f"--attn_implementation {name}: is for serving alone; leave it out"]
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    options: Any = {**dict.fromkeys(sizes, 1), "hidden_size": 8, "attn_implementation": name}
    try:
        with torch.device("meta"):
            LlamaModel(LlamaConfig(**options))
    except Exception as error:  # of transformers, or of a package or the hub that has the kernels
        way_out = ": pip install flash-attn" if name == "flash_attention_2" else ""
        return [f"--attn_implementation {name}: {first_line(error)}{way_out}"]
    if name not in ("eager", "sdpa") and training.device.type == "cpu":
        return [f"--attn_implementation {name}: does not train on a CPU; leave it out"]
    return []


def _hub(training: "TrainingArguments") -> list[str]:
    from huggingface_hub import HfApi

    try:
        HfApi(token=training.hub_token).whoami()
    except Exception as error:  # of the network, or of whoever is not logged in
        return [f"--push_to_hub: {first_line(error)}"]
    return []


def _optimization(training: "TrainingArguments") -> list[str]:
    """What keeps the optimizer and the schedule from being made, found by making them of one number."""
    import torch
    from transformers import Trainer, get_scheduler

    try:
        Trainer.get_optimizer_cls_and_kwargs(training)
    except ImportError as error:
        return [f"--optim {getattr(training.optim, 'value', training.optim)}: {first_line(error)}"]
    except ValueError:  # one that is made for a model
        pass
    kind = training.lr_scheduler_type
    options: Any = training.lr_scheduler_kwargs
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-3)
    try:
        get_scheduler(kind, optimizer, 0, 1, scheduler_specific_kwargs=dict(options) if options else None)
    except (ValueError, TypeError, KeyError) as error:
        return [f"--lr_scheduler_type {getattr(kind, 'value', kind)}: {first_line(error)}; see --lr_scheduler_kwargs"]
    return []
