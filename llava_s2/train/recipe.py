"""The two stages of LLaVA's training, on transformers' ``Trainer`` and PEFT.

Both train an adapter over a frozen model: ``pretrain`` one that holds the projector alone, ``finetune`` one that holds
the projector and LoRA on the language model's linear layers. So both write, resume and load the same way.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from peft import PeftModel
from torch import Tensor
from transformers import LlavaForConditionalGeneration, LlavaProcessor, TrainingArguments, set_seed
from transformers.training_args import ParallelMode
from transformers.utils import logging

from llava_s2.data.bad_samples import LOG, BadSamples, count_bad
from llava_s2.data.collator import Collator
from llava_s2.data.dataset import ConversationDataset
from llava_s2.data.training_records import TrainingRecords, check_records
from llava_s2.errors import InputError
from llava_s2.files import writing
from llava_s2.formats.configs import (
    checkpoint_text_config,
    processor_for_lengths,
)
from llava_s2.formats.identify import identify
from llava_s2.formats.llava_writer import write_projector
from llava_s2.model.assemble import split_gguf
from llava_s2.model.embedded import resolve_language_model, resolve_model
from llava_s2.model.language_model import read_language_config
from llava_s2.model.templates import IMAGE_MARKERS, IMAGE_START_TOKEN, TEMPLATES, template_name
from llava_s2.s2 import S2VisionConfig
from llava_s2.s2.packed_linear import pack_frozen
from llava_s2.train.arguments import RecipeArguments, left_out, parse_flags
from llava_s2.train.base_model import record_of
from llava_s2.train.callbacks import (
    GoOn,
    ScoreCheckpoints,
    StopEarly,
    StopOnBadSamples,
    StopOnSignal,
    check_share,
    plot_losses,
)
from llava_s2.train.checkpoints import WRITING
from llava_s2.train.dry_run import describe_parameters, describe_run
from llava_s2.train.examples import Examples, hold_out
from llava_s2.train.fingerprint import fingerprint
from llava_s2.train.output_folder import Start, check_inputs, claim, finish, locked
from llava_s2.train.packing import packing_collator
from llava_s2.train.parts import TrainableModules, choose_parts
from llava_s2.train.sampler import order_seed
from llava_s2.train.speed import count_parameters
from llava_s2.train.starting_model import (
    chat_template,
    check_named_parts,
    check_own,
    check_parts,
    is_language_model,
    load_starting_model,
    no_sharding_at_load,
    read_projector,
)
from llava_s2.train.stored_features import store_features
from llava_s2.train.trainer import LlavaTrainer
from llava_s2.train.universal import reshard
from llava_s2.weight_files import first_line

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class _Run:
    """What is known of a run before any weight is loaded.

    Attributes:
        components: the modules that are trained.
        template: the chat template, Jinja text.
        from_parts: whether training starts from a language model and a tower, rather than from a LLaVA.
        vision_config: of the S2 tower, where it starts from parts.
        projector: the state dict that the projector starts with, where one was given.
        checked: the training records.
        held_out: the records of ``--eval_data_path``.
    """

    stage: str
    recipe: RecipeArguments
    training: TrainingArguments
    components: TrainableModules
    template: str
    from_parts: bool
    vision_config: S2VisionConfig | None
    projector: dict[str, Tensor] | None
    checked: TrainingRecords
    held_out: TrainingRecords | None

    @property
    def output_dir(self) -> Path:
        return Path(str(self.training.output_dir))

    @property
    def skips_bad_samples(self) -> bool:
        return self.recipe.on_bad_sample == "skip"

    @property
    def trains_markers(self) -> bool:
        """Whether the rows of the image markers learn: those new in a language model, always."""
        return IMAGE_START_TOKEN in self.template and (self.from_parts or self.recipe.mm_use_im_start_end)

    def say(self, text: str) -> None:
        """Prints a line, once for all processes."""
        if self.training.process_index == 0:
            print(text, flush=True)


def train(stage: str, flags: Sequence[str]) -> Path | None:
    """Runs a stage: ``train("finetune", ["--model_name_or_path", llm, "--vision_tower", tower, …])``.

    Started again with the same flags, it goes on from the last whole checkpoint in ``output_dir``; with other flags it
    is refused there.

    Args:
        stage: ``pretrain`` or ``finetune``.
        flags: a command line, see `llava_s2.train.arguments.parse_flags`.

    Returns:
        ``output_dir``, which then holds an adapter for ``load_pretrained`` and ``trainer_state.json`` with the losses;
        None after ``--dry_run``.

    Raises:
        InputError: a flag, the data, or a checkpoint is wrong; as far as it can be known, before any weight is loaded.
    """
    run = _check_run(stage, flags)
    training = run.training
    if run.recipe.dry_run:
        with no_sharding_at_load(training):
            run.say(describe_run(run.recipe, training, run.components, run.checked, run.from_parts, run.trains_markers))
        return None
    with locked(training):
        start = claim(training, _fingerprint(run), run.recipe.overwrite_output_dir)
        if start.finished is not None:
            run.say(_finished_already(run, start.finished))
            return run.output_dir
        if start.checkpoint is not None:
            reshard(start.checkpoint, training)
        set_seed(training.seed)
        bad_samples = _bad_samples(run, goes_on=start.checkpoint is not None)
        examples, held_out = _examples_before_weights(run, bad_samples)
        model, processor, base = load_starting_model(
            run.recipe,
            training,
            run.components,
            run.projector,
            from_parts=run.from_parts,
            checkpoint=start.checkpoint,
        )
        _prepare_examples(run, examples, held_out, model, processor)
        collate = _collator(run, model, processor)
        markers = processor.tokenizer.convert_tokens_to_ids(list(IMAGE_MARKERS)) if run.trains_markers else ()
        trainable = choose_parts(model, run.components, run.recipe, markers)
        trainer = _build_trainer(run, trainable, processor, collate, examples, held_out, base)
        run.say("\n".join([*describe_parameters(count_parameters(trainable), run.components), start.describe()]))
        # torchrun's processes, be it one, exchange the weights, autocast would cast and torch.compile trace them.
        alone = training.parallel_mode is ParallelMode.NOT_PARALLEL
        others = (
            training.bf16,
            training.fp16,
            training.deepspeed,
            training.fsdp,
            training.debug,
            training.torch_compile,
        )
        if alone and not any(others):
            pack_frozen(trainable)  # on a CPU
        _train(trainer, start)
        if held_out is not None and not training.load_best_model_at_end:
            trainer.evaluate_once()
        _save_result(run, trainer)
        run.say(f"Saved to {run.output_dir}")
    return run.output_dir


def _check_run(stage: str, flags: Sequence[str]) -> _Run:
    """Reads flags, configs and data.

    Raises:
        InputError: something of them is wrong, or they do not fit together.
    """
    recipe, training = parse_flags(stage, flags)
    if recipe.vision_tower is None:
        recipe.model_name_or_path = resolve_model(recipe.model_name_or_path)
    components = TrainableModules.of(stage, recipe)
    if training.process_index == 0 and (told := left_out(stage, flags, recipe, training, components.lora)):
        print(told, flush=True)
    training.dataloader_pin_memory &= torch.cuda.is_available()
    if training.ddp_find_unused_parameters is None:  # of a tower that learns, the blocks above the layer that is read
        training.ddp_find_unused_parameters = components.tower
    _check_flags(recipe, training, components)
    from_parts = is_language_model(recipe)
    check_named_parts(recipe, from_parts)
    if not from_parts:
        check_own(recipe)
    template = chat_template(stage, recipe, from_parts)
    if recipe.template is not None and template != TEMPLATES["plain"]:
        recipe.template = template
    projector = None if recipe.pretrain_mm_mlp_adapter is None else read_projector(recipe.pretrain_mm_mlp_adapter)
    with no_sharding_at_load(training):
        vision_config = check_parts(recipe, projector) if from_parts else None
    check_inputs(
        training, [recipe.model_name_or_path, recipe.vision_tower, recipe.base, recipe.pretrain_mm_mlp_adapter]
    )
    seed = order_seed(training)
    skips = recipe.on_bad_sample == "skip"
    held_out = None
    with training.main_process_first(desc="checking records"):  # the others find what it found in the cache folder
        checked = check_records(
            recipe.data_path, recipe.image_folder, template, weights=recipe.data_weights, seed=seed, skip_bad=skips
        )
        if recipe.eval_data_path is not None:
            held_out = check_records(recipe.eval_data_path, recipe.eval_image_folder or recipe.image_folder, template)
    if training.process_index == 0:
        print(checked.describe, flush=True)
        for notice in checked.notices:
            logger.warning(notice)
    run = _Run(stage, recipe, training, components, template, from_parts, vision_config, projector, checked, held_out)
    if run.trains_markers and components.is_adapter and (training.fsdp or _is_zero3(training)):
        raise InputError(
            "--mm_use_im_start_end: rows of a frozen embedding do not learn while it is sharded; use ZeRO-2 or plain "
            "torchrun, or train the whole language model"
        )
    return run


def _check_flags(recipe: RecipeArguments, training: TrainingArguments, components: TrainableModules) -> None:
    """Raises InputError for flags that contradict each other or ask for what is not there."""
    if recipe.bits != 16 and (training.fsdp or _is_zero3(training)):
        raise InputError(f"--bits {recipe.bits}: quantized weights cannot be sharded; use ZeRO-2 or plain torchrun")
    if recipe.cache_tower_features is not None and components.tower:
        raise InputError("--cache_tower_features: the tower learns, so its features change; leave it out")
    if training.train_sampling_strategy == "batch_rebalance":
        raise InputError(
            "--train_sampling_strategy batch_rebalance: takes another number of examples a step; use "
            "group_by_length, or --group_by_modality_length True"
        )
    if training.use_liger_kernel and not torch.cuda.is_available():
        raise InputError("--use_liger_kernel: Liger's kernels need a GPU, and torch sees none; leave it out")
    if training.deepspeed:
        _check_deepspeed(training)


def _check_deepspeed(training: TrainingArguments) -> None:
    """Raises InputError where DeepSpeed's config contradicts the flags, or would have it ignore some of them."""
    config, name = training.hf_deepspeed_config, f"--deepspeed {training.deepspeed}"
    for section, ignored in (
        ("optimizer", "--optim, and all parts would have one rate"),
        ("scheduler", "--lr_scheduler_type and --warmup_steps"),
    ):
        if config.get_value(section):
            raise InputError(f'{name}: its section "{section}" would take the place of {ignored}; leave it out')
    config.config.setdefault("train_micro_batch_size_per_gpu", training.per_device_train_batch_size)
    config.config.setdefault("gradient_accumulation_steps", training.gradient_accumulation_steps)
    if config.mismatches:
        what = config.mismatches[0].removeprefix("- ds ").replace(" vs hf ", ", but the flags say ")
        raise InputError(f'{name}: {what}; write "auto" in the file')
    if training.process_index == 0 and training.max_grad_norm and not config.get_value("gradient_clipping"):
        logger.warning(
            f"{name}: has no gradient_clipping, so DeepSpeed clips no gradients (as with LLaVA's configs), whatever "
            '--max_grad_norm says; "gradient_clipping": "auto" clips them'
        )


def _fingerprint(run: _Run) -> dict[str, Any]:
    """The run's fingerprint, which the first process alone needs and works out."""
    if run.training.process_index > 0:
        return {}
    template = template_name(run.template) or run.template
    return fingerprint(
        run.stage,
        run.recipe,
        run.training,
        run.components,
        template,
        run.checked,
        run.projector,
        run.vision_config,
    )


def _finished_already(run: _Run, steps: int) -> str:
    return (
        f"{run.output_dir}: this run is finished ({steps:,} steps), nothing is left to do. --overwrite_output_dir True "
        f"starts it anew; to train on, start from it with --model_name_or_path {run.output_dir} in another --output_dir"
    )


def _bad_samples(run: _Run, goes_on: bool) -> BadSamples | None:
    """With ``--on_bad_sample skip``: starts the log with the records that were found bad before training.

    Raises:
        InputError: they are more than ``--max_bad_share``.
    """
    if not run.skips_bad_samples:
        return None
    checked, log = run.checked, run.output_dir / LOG
    found = BadSamples(log, checked.lengths)
    if run.training.process_index == 0:
        if not goes_on:
            log.unlink(missing_ok=True)
        for bad in checked.bad:
            found.add(bad)
    check_share(len({bad.record for bad in checked.bad}), len(checked.records), run.recipe.max_bad_share, log)
    return found


def _examples_before_weights(run: _Run, bad_samples: BadSamples | None) -> tuple[Examples, Examples | None]:
    """What is trained on and what is evaluated on, with a processor that knows lengths alone.

    Raises:
        InputError: a record has no target within ``--model_max_length``, or `_split` leaves too few.
    """
    recipe = run.recipe
    processor = processor_for_lengths(
        recipe.model_name_or_path,
        recipe.base,
        vision_tower=recipe.vision_tower,
        vision_config=run.vision_config,
        gguf_file=recipe.gguf_file,
        extra_tokens=IMAGE_MARKERS if run.trains_markers else (),
    )
    dataset = ConversationDataset(run.checked, processor, run.template, run.recipe.model_max_length, bad_samples)
    if run.training.process_index == 0 and (too_long := dataset.too_long()):
        logger.warning(too_long)
    _check_positions(run, dataset)
    return _split(run, dataset)


def _check_positions(run: _Run, dataset: ConversationDataset) -> None:
    """Tells of examples that are longer than the language model was made for.

    Raises:
        InputError: there are some, and the language model has no positions beyond its own.
    """
    recipe = run.recipe
    if run.from_parts:
        llm, gguf_file = split_gguf(resolve_language_model(recipe.model_name_or_path), recipe.gguf_file)
        config: Any = read_language_config(llm, gguf_file)
    else:
        config = checkpoint_text_config(identify(recipe.model_name_or_path))
    limit = getattr(config, "max_position_embeddings", None)
    if not limit or limit >= recipe.model_max_length:
        return
    told = dataset.too_long(limit, "the language model's max_position_embeddings")
    if told is None:
        return
    told += f"; lower --model_max_length from {recipe.model_max_length} to {limit}"
    rotary = getattr(config, "rope_parameters", None) or getattr(config, "rope_theta", None)
    if not rotary:
        raise InputError(f"{told}, for it has no positions beyond")
    run.say(f"warning: {told}, or expect it to be worse there")


def _prepare_examples(
    run: _Run,
    examples: Examples,
    held_out: Examples | None,
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
) -> None:
    """Has the examples come as the loaded model takes them."""
    recipe, training = run.recipe, run.training
    dataset = examples.dataset
    dataset.processor = processor
    if held_out is not None:
        held_out.dataset.processor = processor
    if recipe.cache_tower_features is not None:
        folder, limit = Path(recipe.cache_tower_features), recipe.cache_tower_features_gb * 1e9
        with no_sharding_at_load(training):
            dataset.features = store_features(model, dataset, folder, limit, training)


def _split(run: _Run, dataset: ConversationDataset) -> tuple[Examples, Examples | None]:
    """The examples to train on, and those to evaluate on.

    Raises:
        InputError: there is nothing on one side, or nothing in a record to evaluate on.
    """
    training, share = run.training, run.recipe.eval_split
    examples, held_out = Examples(dataset), None
    if run.held_out is not None:
        others = ConversationDataset(run.held_out, dataset.processor, run.template, run.recipe.model_max_length)
        held_out = Examples(others)
    elif share is not None:
        examples, held_out = hold_out(dataset, share, order_seed(training))
    batch = training.train_batch_size * training.world_size
    if training.dataloader_drop_last and len(examples) < batch:
        raise InputError(
            f"--dataloader_drop_last: {len(examples)} records are less than a batch of {batch} on all "
            "processes, so nothing would be left; leave it out or make --per_device_train_batch_size smaller"
        )
    return examples, held_out


def _collator(run: _Run, model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> Any:
    if run.recipe.packing:
        return packing_collator(model, processor.tokenizer, run.recipe.model_name_or_path)
    return Collator(processor.tokenizer.pad_token_id)


def _build_trainer(
    run: _Run,
    model: LlavaForConditionalGeneration | PeftModel,
    processor: LlavaProcessor,
    collate: Any,
    examples: Examples,
    held_out: Examples | None,
    base: str | None,
) -> LlavaTrainer:
    recipe, training = run.recipe, run.training
    record = None
    if isinstance(model, PeftModel):
        assert base is not None
        model.peft_config["default"].base_model_name_or_path = base
        record = record_of(base) if training.should_save else None
    callbacks: list[Any] = [StopOnSignal()]
    if recipe.eval_task is not None and recipe.eval_data is not None:
        callbacks.append(ScoreCheckpoints(recipe.eval_task, recipe.eval_data, recipe.eval_limit))
    if recipe.early_stopping_patience is not None:
        callbacks.append(StopEarly(recipe.early_stopping_patience))
    if run.skips_bad_samples:
        callbacks.append(StopOnBadSamples(run.output_dir / LOG, recipe.max_bad_share, len(examples)))
    callbacks.append(GoOn())  # last, for it goes by what the others ask for
    trainer = LlavaTrainer(
        model=model,
        args=training,
        train_dataset=examples,
        eval_dataset=held_out,
        data_collator=collate,
        processing_class=processor,
        projector_lr=recipe.mm_projector_lr,
        tower_lr=recipe.mm_vision_tower_lr,
        peak=None if recipe.peak_tflops is None else recipe.peak_tflops * 1e12,
        lengths=_lengths_to_group_by(run, examples),
        base=record,
        callbacks=callbacks,
    )
    for callback in callbacks:
        if isinstance(callback, ScoreCheckpoints):
            callback.trainer = trainer
    return trainer


def _lengths_to_group_by(run: _Run, examples: Examples) -> list[int] | None:
    """The examples' lengths, below zero for those to be batched apart, or None for batches of any examples."""
    lengths = run.checked.lengths[examples.indices]
    if run.recipe.group_by_modality_length:
        return lengths.tolist()
    return abs(lengths).tolist() if run.training.train_sampling_strategy == "group_by_length" else None


def _train(trainer: LlavaTrainer, start: Start) -> None:
    try:
        trainer.train(resume_from_checkpoint=None if start.checkpoint is None else str(start.checkpoint))
    except InputError as error:  # from a DataLoader worker it comes with that worker's stack trace around it
        raise InputError(str(error).strip().splitlines()[-1].split("InputError: ")[-1]) from None
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
        raise InputError(
            f"out of memory at step {trainer.state.global_step + 1} ({first_line(error)}); lower "
            "--per_device_train_batch_size and raise --gradient_accumulation_steps by the same factor, which changes "
            "no step, or add --activation_checkpointing True"
        ) from None


def _save_result(run: _Run, trainer: LlavaTrainer) -> None:
    """Writes the model and the losses to ``output_dir``, and records that the run is finished."""
    output_dir, log = run.output_dir, run.output_dir / LOG
    with writing(output_dir):
        trainer.save_model()
    if run.training.should_save:
        if run.components.is_adapter and not run.components.lora and not run.components.tower:
            write_projector(output_dir)
        shutil.rmtree(output_dir / WRITING, ignore_errors=True)
        plot_losses(trainer.state.log_history, output_dir / "loss.png")
    trainer.save_state()
    if run.training.process_index > 0:
        return
    finish(run.training, trainer.state.global_step)
    if run.skips_bad_samples and (bad := count_bad(log)):
        logger.warning(f"{bad} records were bad, and others stood in their place: {log}")


def _is_zero3(training: TrainingArguments) -> bool:
    return bool(training.deepspeed) and training.hf_deepspeed_config.is_zero3()
