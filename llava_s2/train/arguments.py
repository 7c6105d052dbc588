"""What a training run is told: LLaVA's flags, transformers' ``TrainingArguments``, or a YAML file of both.

This module imports no transformers until it parses, so that ``--help`` answers at once.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from llava_s2.errors import InputError, one_line
from llava_s2.formats.llava_config import S2_SCALES, parse_scales
from llava_s2.model.templates import LLAVA_NAMES, TEMPLATE_HELP
from llava_s2.train.flag_values import impossible_values
from llava_s2.train.llava_flags import (
    ACCEPTED,
    DEFAULTS,
    RENAMED,
    STAGES,
    TRAINER_DEFAULTS,
    check_accepted,
    differences,
    flag_names,
    is_llava_script,
    refuse,
)
from llava_s2.weight_files import read_json

if TYPE_CHECKING:
    from transformers import TrainingArguments

# LLaVA-1.5's published recipe where transformers' defaults differ; all of them TrainingArguments flags.
RECIPE: dict[str, dict[str, str]] = {
    stage: {
        "learning_rate": learning_rate,
        "num_train_epochs": "1",
        "lr_scheduler_type": "cosine",
        "warmup_steps": "0.03",
        "logging_steps": "1",
        "remove_unused_columns": "False",
    }
    for stage, learning_rate in zip(STAGES, ("1e-3", "2e-4"), strict=True)
}

# Flags of the vision side, of which a LLaVA to start from has its own.
OF_VISION = ("image_aspect_ratio", "mm_projector_type", "mm_vision_select_layer", "s2_resize_output_to_idx")

# Flags of one value or several, separated by spaces.
_SEVERAL = ("data_path", "data_weights", "image_folder", "eval_data_path", "eval_image_folder")


def _flag(help: str, default: Any = None) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(kw_only=True)
class RecipeArguments:
    """The flags that ``TrainingArguments`` does not have, under LLaVA's names where LLaVA has them."""

    model_name_or_path: str = _flag("language model, or a LLaVA to go on from: a folder or hub id (required)", "")
    widen_from: str | None = _flag(
        "in its place: a single-scale LLaVA, such as llava-hf/llava-1.5-7b-hf, to widen to --s2_scales; "
        "before the first step it answers as it did"
    )
    data_path: list[str] = _flag(  # noqa: RUF009  # a field()
        "training records, one or several: LLaVA's JSON or JSON lines, datasets folder, Parquet or webdataset shards",
        MISSING,
    )
    data_weights: list[float] | None = _flag(  # noqa: RUF009
        "of several: how often an epoch has each one's records, such as 1 0.5 2"
    )
    image_folder: list[str] | None = _flag(  # noqa: RUF009
        "folder or tar files that the records' images are in; one, or one for each"
    )
    on_bad_sample: str = _flag("a record that cannot be used: error, or skip, which takes another one for it", "error")
    max_bad_share: float = _flag("with skip: stop when more than this share of the records is bad", 0.02)
    vision_tower: str | None = _flag(
        "vision tower, a folder or hub id, open_clip:ARCH/WEIGHTS, timm:ARCH[/FILE], mae:FILE (a LLaVA brings its own)"
    )
    replace_vision_tower: bool = _flag("use --vision_tower although the LLaVA to start from holds one", False)
    s2_scales: str | None = _flag(
        "image sides in pixels, the tower's own first: 336,672,1008 (widens a single-scale LLaVA; default: its own)"
    )
    mm_vision_select_layer: int | None = _flag(
        "hidden state of the tower that is read (default: -2 of a plain ViT, else the last stage)"
    )
    mm_projector_type: str | None = _flag("of a new projector: mlp2x_gelu (default) or linear (mlp1x_gelu)")
    s2_resize_output_to_idx: int | None = _flag(
        "number of the scale whose feature grid the tokens have (default: 0; -1: the largest)"
    )
    gguf_file: str | None = _flag("the language model's GGUF file in its folder")
    base: str | None = _flag("what lies under the adapter to go on from, if not what it names")
    pretrain_mm_mlp_adapter: str | None = _flag("projector to start with: pretrain's output, or LLaVA's .bin file")
    template: str | None = _flag(f"{TEMPLATE_HELP} (default: plain for pretrain, else the LLaVA's or vicuna_v1)")
    image_aspect_ratio: str | None = _flag(
        "how an image becomes a square: pad (default), square, resize; or keep or dynamic (not at all)"
    )
    mm_use_im_start_end: bool = _flag(
        "every image between <im_start> and <im_end>: tokens added to a language model, whose rows are trained", False
    )
    model_max_length: int = _flag("most tokens of an example, its images' included", 2048)
    group_by_modality_length: bool = _flag("batches of like length, those with images apart", False)
    packing: bool = _flag("a batch's examples one behind the other in few rows, without attention between them", False)
    attn_implementation: str | None = _flag("sdpa (default), flash_attention_2 (needs flash-attn), eager …")
    tune_mm_mlp_adapter: bool | None = _flag("train the projector alone (pretrain's default)")
    lora_enable: bool | None = _flag("LoRA on the language model (finetune's default); False trains all of it")
    freeze_mm_mlp_adapter: bool = _flag("keep the projector as it is", False)
    unfreeze_mm_vision_tower: bool = _flag("train the vision tower too", False)
    mm_projector_lr: float | None = _flag("learning rate of the projector, if not --learning_rate")
    mm_vision_tower_lr: float | None = _flag("learning rate of the tower, if not --learning_rate")
    bits: int = _flag("bits of a frozen language model's weights: 4 (QLoRA) or 8 need bitsandbytes", 16)
    lora_r: int = _flag("rank of LoRA on the language model", 128)
    lora_alpha: int = _flag("scale of LoRA, times its rank", 256)
    lora_dropout: float = _flag("dropout before LoRA", 0.05)
    cache_tower_features: str | None = _flag("folder to keep a frozen tower's features in, computed once")
    cache_tower_features_gb: float = _flag("GB that this folder may take", 100.0)
    peak_tflops: float | None = _flag("the device's dense 16-bit TFLOP/s, for MFU where it is not known")
    dry_run: bool = _flag("print what would be trained, steps and memory a GPU, and stop; reads no weights", False)
    dry_run_gpus: int | None = _flag("with dry_run: as if on that many GPUs")
    eval_task: str | None = _flag("benchmark to score checkpoints on, such as vstar, every --eval_steps")
    eval_data: str | None = _flag("folder of that benchmark")
    eval_limit: int | None = _flag("score that many of its questions")

    eval_data_path: list[str] | None = _flag(  # noqa: RUF009
        "records to evaluate on, as data_path: eval_loss is logged, for load_best_model_at_end and early stopping"
    )
    eval_image_folder: list[str] | None = _flag("where their images are (default: image_folder)")  # noqa: RUF009
    eval_split: float | None = _flag("in its place: share of the records to hold out, such as 0.05")
    early_stopping_patience: int | None = _flag("stop when eval_loss has not been lower for that many evaluations")
    overwrite_output_dir: bool = _flag("delete the run that output_dir holds, and start anew", False)

    def __post_init__(self) -> None:
        if self.eval_data_path is not None and self.eval_split is not None:
            raise InputError("--eval_split holds out a share of --data_path; leave it or --eval_data_path out")
        if self.eval_split is not None and not 0 < self.eval_split < 1:
            raise InputError(f"--eval_split {self.eval_split}: must be a share between 0 and 1, such as 0.05")
        if self.eval_split is not None and self.on_bad_sample == "skip":
            raise InputError(
                "--eval_split: --on_bad_sample skip would put held-out records in the place of bad ones; "
                "name a file with --eval_data_path"
            )
        if self.early_stopping_patience is not None:
            if not self.evaluates:
                raise InputError("--early_stopping_patience: needs --eval_data_path or --eval_split")
            if self.early_stopping_patience < 1:
                raise InputError(f"--early_stopping_patience {self.early_stopping_patience}: must be 1 or more")
        if self.on_bad_sample not in ("error", "skip"):
            raise InputError(f"--on_bad_sample {self.on_bad_sample}: must be error or skip")
        if not 0 <= self.max_bad_share <= 1:
            raise InputError(f"--max_bad_share {self.max_bad_share}: must be from 0 to 1")
        if self.mm_projector_type == "mlp1x_gelu":  # LLaVA's other name of one layer
            self.mm_projector_type = "linear"
        if self.mm_projector_type not in (None, "mlp2x_gelu", "linear"):
            raise InputError(
                f"--mm_projector_type {self.mm_projector_type}: transformers' LLaVA has two linear layers and one "
                "activation between them, which can be mlp2x_gelu or linear; a model with another projector neither it "
                "nor vLLM would load"
            )
        if self.bits not in (4, 8, 16):
            raise InputError(f"--bits {self.bits}: must be 4, 8 or 16")
        if (self.eval_task is None) != (self.eval_data is None):
            raise InputError("--eval_task and --eval_data belong together: a benchmark and its folder")
        if self.template is not None:
            self.template = LLAVA_NAMES.get(self.template, self.template)
        if self.widen_from is not None:
            if self.model_name_or_path not in ("", self.widen_from):
                raise InputError("--widen_from names the model to start from, so leave --model_name_or_path out")
            if self.s2_scales is None:
                raise InputError(
                    f"--widen_from {self.widen_from}: name the new scales, such as --s2_scales 336,672,1008"
                )
            self.model_name_or_path = self.widen_from
        if not self.model_name_or_path:
            raise InputError("--model_name_or_path is missing: the language model or LLaVA to start from")

    @property
    def evaluates(self) -> bool:
        """Whether there are records to evaluate on."""
        return self.eval_data_path is not None or self.eval_split is not None

    @property
    def scales(self) -> list[int]:
        """``s2_scales`` as numbers. Raises InputError where they are none."""
        return parse_scales(self.s2_scales or "", "--s2_scales")

    @property
    def output_scale(self) -> int:
        """``s2_resize_output_to_idx`` of a new tower."""
        return self.s2_resize_output_to_idx or 0


def describe_flags(stage: str) -> str:
    """The text that ``--help`` shows of the flags."""
    lines = ["flags (also as NAME: VALUE in the YAML file, which the command line overrides):"]
    for entry in fields(RecipeArguments):
        default = "required" if entry.default is MISSING else f"default: {entry.default}"
        note = "" if entry.default in (None, "") else f" ({default})"
        lines.append(f"  --{entry.name:<26}{entry.metadata['help']}{note}")
    recipe = " ".join(f"--{name} {value}" for name, value in RECIPE[stage].items() if name != "remove_unused_columns")
    lines += [
        "",
        "and every flag of transformers.TrainingArguments under its own name. Set unless given:",
        f"  {recipe}",
    ]
    return "\n".join(lines)


def parse_flags(stage: str, flags: Sequence[str]) -> "tuple[RecipeArguments, TrainingArguments]":
    """Reads a command line such as ``["recipe.yaml", "--lora_r", "16", "--learning_rate", "1e-4"]``.

    Args:
        stage: ``pretrain`` or ``finetune``.
        flags: optionally a YAML file first; then flags, the last of a name winning.

    Raises:
        InputError: an unknown flag, a required one missing, or a value that cannot be.
    """
    from transformers import HfArgumentParser, TrainingArguments
    from transformers.integrations import get_available_reporting_integrations
    from transformers.training_args import ParallelMode

    from llava_s2.train.restarts import join_after_restart

    class Parser(HfArgumentParser):
        def error(self, message: str) -> Any:
            raise InputError(f"{message}; see llava-s2 train {stage} --help")

    flags = _bare_fsdp(_group_by_length(_one_warmup(_s2(expand_yaml(flags)))))
    given = flag_names(flags)
    problems = []
    if "output_dir" not in given:
        problems.append("--output_dir is missing: the folder that the result goes to")  # Trainer would invent one
    if "deepspeed" in given and find_spec("deepspeed") is None:
        problems.append("--deepspeed: deepspeed is not installed: pip install 'llava-s2[train]'")
    elif (config := _values(flags).get("deepspeed", "")).endswith(".json"):
        read_json(config)
    if "use_liger_kernel" in given and find_spec("liger_kernel") is None:
        problems.append("--use_liger_kernel: liger-kernel is not installed: pip install liger-kernel")
    named = set(_values(flags).get("report_to", "").replace(",", " ").split()) - {"none", "all"}
    for reporter in sorted(named - set(get_available_reporting_integrations())):
        package = {"tensorboard": "'llava-s2[train]'", "wandb": "'llava-s2[wandb]'"}.get(reporter, reporter)
        problems.append(f"--report_to {reporter}: {reporter} is not installed: pip install {package}")
    for name, no in (("do_train", ("false", "0", "no")), ("do_predict", ("", "true", "1", "yes"))):
        if _values(flags).get(name, "-").lower() in no:
            problems.append(f"--{name}: this program trains (and evaluates on --eval_data_path); leave it out")
    if "ddp_backend" in given and "WORLD_SIZE" not in os.environ:
        problems.append("--ddp_backend: is for several processes; start them with torchrun, or leave it out")
    refuse(problems + _without_gpu(flags))
    if _is_on(flags, "dry_run") and not _sees_gpu():  # of a run elsewhere
        flags = [*_without(_without(flags, "tf32"), "use_cpu"), "--use_cpu", "True"]
    defaults = DEFAULTS | TRAINER_DEFAULTS if is_llava_script(flags) else RECIPE[stage]
    start = [text for name, value in defaults.items() for text in (f"--{name}", value)]
    start += ["--report_to", "tensorboard" if find_spec("tensorboard") else "none"]
    if given & {"eval_data_path", "eval_split"} and "eval_strategy" not in given:
        start += _evaluate_when_saving(flags)
    join_after_restart(float(_values(flags).get("ddp_timeout", TrainingArguments.ddp_timeout)))
    both: list[Any] = [RecipeArguments, TrainingArguments]
    parser = Parser(both, allow_abbrev=False)
    for name in ACCEPTED:
        parser.add_argument(f"--{name}", nargs="?", const="True")
    try:
        recipe, training, others, unknown = parser.parse_args_into_dataclasses(
            [*start, *map(_rename, flags)], return_remaining_strings=True, look_for_args_file=False
        )
    except (ValueError, ImportError, TypeError) as error:
        raise error if isinstance(error, InputError) else InputError(one_line(error)) from None
    if unknown:
        raise InputError(f"no such flag: {unknown[0]}; see llava-s2 train {stage} --help")
    problems = check_accepted({name: value for name, value in vars(others).items() if value is not None})
    if training.eval_strategy != "no" and not recipe.evaluates:
        problems.append(
            f"--eval_strategy {training.eval_strategy.value}: there is nothing to evaluate on; leave it out, or name "
            "--eval_data_path or --eval_split"
        )
    if training.fsdp and training.parallel_mode is not ParallelMode.DISTRIBUTED:
        problems.append("--fsdp shards a model over processes: start it with torchrun … -m llava_s2.train")
    if training.n_gpu > 1 and not recipe.dry_run:  # Trainer would cut a batch's images up as if one belonged to a row
        problems.append(
            f"this machine has {training.n_gpu} GPUs: start torchrun --nproc_per_node {training.n_gpu} -m "
            f"llava_s2.train {stage} …, or show it one with CUDA_VISIBLE_DEVICES=0"
        )
    training.remove_unused_columns = False  # batches hold what no model takes, and a YAML file may have the default
    problems += impossible_values(recipe, training)
    refuse(problems)
    return recipe, training


def left_out(
    stage: str, flags: Sequence[str], recipe: RecipeArguments, training: "TrainingArguments", lora: bool
) -> str | None:
    """The line that says which flags that are left out have another default in LLaVA; None where none has.

    Args:
        flags: the command line that ``recipe`` and ``training`` were read from.
        lora: whether LoRA is trained.
    """
    from transformers import SchedulerType

    ours = {**vars(training), **vars(recipe), "lora_enable": lora}
    ours["lr_scheduler_type"] = SchedulerType(training.lr_scheduler_type).value
    if recipe.vision_tower is not None:
        ours["image_aspect_ratio"] = recipe.image_aspect_ratio or "pad"
        ours["mm_vision_select_layer"] = recipe.mm_vision_select_layer or -2
        ours["mm_projector_type"] = recipe.mm_projector_type or "mlp2x_gelu"
    return differences(stage, flag_names(expand_yaml(flags)), ours, lora)


def _without_gpu(flags: Sequence[str]) -> list[str]:
    """What asks for a GPU where there is none, in one problem."""
    if _sees_gpu() or _is_on(flags, "dry_run"):
        return []
    on = [f"--{name} True" for name in ("bf16", "fp16", "tf32") if _is_on(flags, name)]
    if on[:1] == ["--bf16 True"] and (_is_on(flags, "use_cpu") or _is_on(flags, "no_cuda")):
        del on[0]  # slower than float32 on most CPUs, and it works
    on += [f"--bits {bits}" for bits in (_values(flags).get("bits"),) if bits in ("4", "8")]
    if not on:
        return []
    named = ", ".join(on)
    return [f"{named}: torch sees no GPU here; leave {'them' if len(on) > 1 else 'it'} out to train on the CPU"]


def _sees_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _is_on(flags: Sequence[str], name: str) -> bool:
    return _values(flags).get(name, "false").lower() in ("true", "1", "yes", "")


def _values(flags: Sequence[str]) -> dict[str, str]:
    """Flag name -> its value on the command line, "" of one without."""
    values: dict[str, str] = {}
    for flag, after in pairwise([*flags, "--"]):
        if flag.startswith("--"):
            name, equals, value = flag.removeprefix("--").partition("=")
            values[name.replace("-", "_")] = value if equals else "" if after.startswith("--") else after
    return values


def _evaluate_when_saving(flags: Sequence[str]) -> list[str]:
    """The flags that have a run evaluate where it saves; transformers' default would be never, or at every log."""
    named = _values(flags)
    strategy = named.get("save_strategy", "steps")
    steps = named.get("eval_steps", named.get("save_steps", "500"))
    return ["--eval_strategy", "steps" if strategy in ("no", "best") else strategy, "--eval_steps", steps]


def _one_warmup(flags: Sequence[str]) -> list[str]:
    """Of ``--warmup_ratio`` and ``--warmup_steps``, one flag here, that which counts in LLaVA: steps, if there are any.

    Raises:
        InputError: the ratio is none.
    """
    values = _values(flags)
    ratio, steps = values.get("warmup_ratio"), values.get("warmup_steps")
    if ratio is None:
        return list(flags)
    try:
        is_share = 0 <= float(ratio) < 1
    except ValueError:
        is_share = False
    if not is_share:
        raise InputError(f"--warmup_ratio {ratio}: must be 0 or more, and less than 1; --warmup_steps takes steps")
    if steps is None:
        return list(flags)
    return _without(flags, "warmup_steps" if steps.rstrip("0.") == "" else "warmup_ratio")


def _s2(flags: Sequence[str]) -> list[str]:
    """LLaVA's ``--s2 True``, whose scales are three where they are left out, as ``--s2_scales``.

    Raises:
        InputError: scales are named beside ``--s2 False``.
    """
    values = _values(flags)
    if "s2" not in values:
        return list(flags)
    kept = _without(flags, "s2")
    if not _is_on(flags, "s2") and "s2_scales" in values:
        raise InputError("--s2 False has a tower see its own scale alone; leave it or --s2_scales out")
    return [*kept, *(["--s2_scales", S2_SCALES] if _is_on(flags, "s2") and "s2_scales" not in values else [])]


def _group_by_length(flags: Sequence[str]) -> list[str]:
    """LLaVA's ``--group_by_length True`` under the name that transformers 5 has for it."""
    if "group_by_length" not in _values(flags):
        return list(flags)
    kept = _without(flags, "group_by_length")
    return [*kept, *(["--train_sampling_strategy", "group_by_length"] if _is_on(flags, "group_by_length") else [])]


def _without(flags: Sequence[str], name: str) -> list[str]:
    """A command line without a flag and its one value."""
    kept, skip = [], False
    for flag, after in pairwise([*flags, "--"]):
        if flag.partition("=")[0].replace("-", "_") == f"__{name}":
            skip = "=" not in flag and not after.startswith("--")
        elif skip:
            skip = False
        else:
            kept.append(flag)
    return kept


def _bare_fsdp(flags: Sequence[str]) -> list[str]:
    """``--fsdp`` for ``--fsdp True``, which transformers takes for a name of its old options."""
    bare: list[str] = []
    for flag in flags:
        if flag.lower() == "true" and bare[-1:] == ["--fsdp"]:
            continue
        bare.append("--fsdp" if flag.lower() == "--fsdp=true" else flag)
    return bare


def _rename(flag: str) -> str:
    name, equals, value = flag.removeprefix("--").partition("=")
    return f"--{RENAMED[name]}{equals}{value}" if flag.startswith("--") and name in RENAMED else flag


def expand_yaml(flags: Sequence[str]) -> list[str]:
    """A command line with the flags of the YAML file in the place of its name."""
    flags = list(flags)
    return [*_yaml_flags(Path(flags[0])), *flags[1:]] if flags and not flags[0].startswith("-") else flags


def _yaml_flags(path: Path) -> list[str]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: must hold one NAME: VALUE a line")
    flags = []
    for name, value in content.items():
        if value is None or (value is False and name in ("fsdp", "deepspeed")):
            continue
        if isinstance(value, list) and name in _SEVERAL:
            flags += [f"--{name}", *map(str, value)]
            continue
        if isinstance(value, list):
            value = ",".join(map(str, value))
        if value is False and (name.endswith("_strategy") or name == "report_to"):
            value = "no" if name.endswith("_strategy") else "none"  # YAML takes the word no for a truth value
        flags.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    return flags
