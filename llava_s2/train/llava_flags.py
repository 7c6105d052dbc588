"""LLaVA's ``train.py`` as this program's command line: its flags, their defaults there, and its way to be started."""

from collections.abc import Sequence

from llava_s2.errors import InputError

STAGES = ("pretrain", "finetune")

# What LLaVA's scripts call a flag, and what it is called here or in transformers 5.
RENAMED = {
    "version": "template",
    "warmup_ratio": "warmup_steps",
    "evaluation_strategy": "eval_strategy",
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
    "no_cuda": "use_cpu",
}

# Flags with which nothing is chosen here, and the values that ask for what is done anyway (None: any).
ACCEPTED: dict[str, tuple[str, ...] | None] = {
    "mm_use_im_patch_token": ("false",),
    "mm_vision_select_feature": ("patch",),
    "mm_patch_merge_type": ("flat",),
    "freeze_backbone": ("false",),
    "lora_bias": ("none",),
    "lora_weight_path": ("",),
    "mpt_attn_impl": None,
    "cache_dir": ("none", ""),
    "lazy_preprocess": None,
    "is_multimodal": None,
    "double_quant": ("true",),
    "quant_type": ("nf4",),
    "save_safetensors": ("true",),
    "half_precision_backend": ("auto",),
}
_WAY_OUT = {
    "cache_dir": "set the environment variable HF_HUB_CACHE",
    "lora_weight_path": "name the adapter with --model_name_or_path",
}

# What LLaVA's train.py and the transformers under it take for a flag that is left out, where it is not what we take.
DEFAULTS = {
    "lora_enable": "False",
    "lora_r": "64",
    "lora_alpha": "16",
    "model_max_length": "512",
    "image_aspect_ratio": "square",
    "mm_projector_type": "linear",
    "mm_vision_select_layer": "-1",
    "tune_mm_mlp_adapter": "False",
}
TRAINER_DEFAULTS = {
    "learning_rate": "5e-5",
    "num_train_epochs": "3",
    "lr_scheduler_type": "linear",
    "warmup_steps": "0",
    "logging_steps": "500",
    "remove_unused_columns": "False",
}


def flag_names(flags: Sequence[str]) -> set[str]:
    """The names of the flags on a command line, as we call them."""
    names = {flag.removeprefix("--").partition("=")[0].replace("-", "_") for flag in flags if flag.startswith("--")}
    return {RENAMED.get(name, name) for name in names}


def is_llava_script(flags: Sequence[str]) -> bool:
    """Whether a command line is one of LLaVA's scripts: all of them have its ``--version`` and say what they do about
    tokens beside an image, which nobody needs to say here."""
    names = {flag.partition("=")[0] for flag in flags}
    return "--version" in names and bool(names & {"--mm_use_im_start_end", "--mm_use_im_patch_token"})


def with_stage(words: Sequence[str]) -> list[str]:
    """The words behind ``train`` with the stage in front; LLaVA's scripts say it with ``--tune_mm_mlp_adapter``.

    The ``--local_rank`` that DeepSpeed puts there goes: the environment says it too.
    """
    words = [word for word in words if not word.startswith("--local_rank=")]
    if not words or words[0] in STAGES or words[0] in ("-h", "--help") or not is_llava_script(words):
        return words
    after = dict(zip(words, [*words[1:], ""], strict=True))
    alone = after.get("--tune_mm_mlp_adapter", "False" if "--tune_mm_mlp_adapter=True" not in words else "True")
    return [STAGES[0] if alone.lower() in ("true", "1", "yes") else STAGES[1], *words]


def check_accepted(values: dict[str, str]) -> list[str]:
    """What is wrong with the flags in ``ACCEPTED``, given what the command line says of them."""
    problems = []
    for name, value in values.items():
        accepted = ACCEPTED[name]
        if accepted is not None and value.lower() not in accepted:
            way_out = f"; {_WAY_OUT[name]}" if name in _WAY_OUT else ""
            problems.append(f"--{name} {value}: only {accepted[0] or 'none'} is supported{way_out}")
    return problems


def differences(stage: str, given: set[str], ours: dict[str, object], lora: bool) -> str | None:
    """The line that says which flags have another value here than in LLaVA where they are left out; None without any.

    Args:
        given: names of the flags that are on the command line.
        ours: what the run takes, by name.
        lora: whether LoRA is trained, so that its rank and scale matter.
    """
    theirs = DEFAULTS | TRAINER_DEFAULTS
    theirs = {name: value for name, value in theirs.items() if name not in given}
    if not lora:
        theirs = {name: value for name, value in theirs.items() if name not in ("lora_r", "lora_alpha")}
    if stage == "pretrain":
        theirs.pop("lora_enable", None)
    else:
        theirs.pop("tune_mm_mlp_adapter", None)
    told = [f"{name} {ours[name]} ({value})" for name, value in theirs.items() if _differ(ours.get(name), value)]
    return f"defaults that differ from LLaVA's (which stand in brackets): {', '.join(told)}" if told else None


def _differ(ours: object, theirs: str) -> bool:
    if ours is None:
        return False
    try:
        return float(str(ours)) != float(theirs)
    except ValueError:
        return str(ours).lower() != theirs.lower()


def refuse(problems: Sequence[str]) -> None:
    """Raises InputError with all the problems in one line; returns where there are none."""
    if problems:
        raise InputError("; ".join(problems))
