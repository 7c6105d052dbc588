"""transformers' ``Trainer`` with what LLaVA's recipe needs beside it: batches by modality, rates by part."""

import json
import math
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import SeedableRandomSampler
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import Dataset, SequentialSampler
from tqdm import tqdm
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput

from llava_s2.data.collator import keep_targets
from llava_s2.data.pixels import Normalizer
from llava_s2.errors import InputError
from llava_s2.files import writing
from llava_s2.formats.base_record import BaseRecord
from llava_s2.model.labels import IGNORE_INDEX
from llava_s2.train.checkpoints import SAVING, WRITING, publish
from llava_s2.train.parts import PROJECTOR, TOWER
from llava_s2.train.sampler import FILLER, EpochSampler, ModalitySampler, order_seed
from llava_s2.train.speed import memory_used, peak_flops, step_flops
from llava_s2.weight_files import list_names

# Where ``trainer_state.json`` has the losses that are not logged yet, beside the states of callbacks.
_UNLOGGED = "unlogged"
# What PEFT puts around the name of a weight.
_WRAPPERS = re.compile(r"^base_model\.model\.|\.base_layer|\.original_module|\.modules_to_save\.default")


class LlavaTrainer(Trainer):
    """
    Args:
        projector_lr: learning rate of the projector; None for the one of the rest.
        tower_lr: of the vision tower, where it learns.
        peak: FLOP/s of the device, for MFU; None for what is known of it by its name.
        base: what is recorded of an adapter's base.
        lengths: of the examples, below zero for those without an image, to batch like with like; None for any order.
        kwargs: ``Trainer``'s.

    A loss that is not a number stops the run and names the weights that are none, or else the records of its batch.
    Images come from the loader as bytes and are normalised on the device. Logits are computed only where some example
    of the batch takes loss.
    """

    def __init__(
        self,
        *,
        projector_lr: float | None = None,
        tower_lr: float | None = None,
        peak: float | None = None,
        lengths: Sequence[int] | None = None,
        base: BaseRecord | None = None,
        **kwargs: Any,
    ) -> None:
        self._base = base
        self._where: Callable[[int], str] = kwargs["train_dataset"].where
        self._normalize = Normalizer(kwargs["processing_class"].image_processor)
        training = kwargs["args"]
        # Liger's own loss never holds logits.
        of_targets = not training.use_liger_kernel or training.label_smoothing_factor > 0
        kwargs["data_collator"] = _NumberedCollator(kwargs["data_collator"], of_targets)
        super().__init__(**kwargs)
        if self.args.fsdp and not self.is_fsdp_enabled:
            raise InputError("--fsdp: accelerate shards with FSDP on GPUs alone, and this run has none; leave it out")
        if self.is_fsdp_enabled and self.accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap is None:
            # Of the layers that the parts' classes name for sharding, those that there are (no CLIP text tower's).
            whole: Any = self.model
            layers = {type(module).__name__ for module in whole.modules()} & set(whole._no_split_modules)
            self.accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = sorted(layers)
        self._rates = {PROJECTOR: projector_lr, TOWER: tower_lr}
        self._lengths = lengths
        self._peak = peak_flops(self.args.device) if peak is None else peak
        self._flops_a_token, self._flops_an_image = step_flops(self.model)
        self._tokens = self._places = self._images = 0  # of this process since the last log; places: padding too
        self._rates_used: dict[str, float] = {}
        self._logged_at = time.monotonic()
        self._first_step: int | None = None  # of this start; None until it has begun

    def get_train_dataloader(self) -> Any:
        sampler = self._get_train_sampler()
        numbered: Any = NumberedDataset(self.train_dataset, sampler)
        loader: Any = self._get_dataloader(
            numbered, "Training", self._train_batch_size, sampler_fn=lambda _: sampler, is_training=True
        )
        loader.base_dataloader.worker_init_fn = partial(_outlive_launcher, loader.base_dataloader.worker_init_fn)
        return loader

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        held_out: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        sampler = EpochSampler(SequentialSampler(held_out), self.args.eval_batch_size * self.args.world_size)
        numbered: Any = NumberedDataset(held_out, sampler)
        return self._get_dataloader(numbered, "Evaluation", self.args.eval_batch_size, sampler_fn=lambda _: sampler)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Splits each of Trainer's two groups (with and without weight decay) by part, each with its own rate."""
        if self.optimizer is None:
            trained: Any = self.model if model is None else model
            decayed = set(self.get_decay_parameter_names(trained))
            groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
            for name, parameter in trained.named_parameters():
                if parameter.requires_grad:
                    part = next((part for part in self._rates if part in name), "language_model")
                    groups.setdefault((part, name in decayed), []).append(parameter)
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, trained)
            self._group_options = [
                {
                    "weight_decay": self.args.weight_decay if decays else 0.0,
                    "lr": self.args.learning_rate if self._rates.get(part) is None else self._rates[part],
                    "part": part,
                }
                for part, decays in groups
            ]
            options["params"] = [
                {"params": parameters, **own}
                for parameters, own in zip(groups.values(), self._group_options, strict=True)
            ]
            self.optimizer_cls_and_kwargs = (optimizer_class, options)
        return super().create_optimizer(model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Mends what DeepSpeed reads of ZeRO-3's universal checkpoints: all groups get the first one's rate and weight
        decay there, and all weights one counter of steps, which each of them advances."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or not self.is_deepspeed_enabled:
            return
        assert self.optimizer is not None and self.lr_scheduler is not None
        rates = self.lr_scheduler.get_last_lr()
        for group, own, rate in zip(self.optimizer.param_groups, self._group_options, rates, strict=True):
            group.update(own | {"lr": rate, "initial_lr": own["lr"]})
        for state in self.optimizer.state.values():
            if isinstance(state.get("step"), Tensor):
                state["step"] = state["step"].clone()

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Lets a run that goes on log the losses since its last log as if it had never stopped, and makes no step of
        one whose checkpoint is of its last, where Trainer would make one more."""
        if self._first_step is None:
            self._first_step = self.state.global_step
            kept: Any = self.state.stateful_callbacks
            if _UNLOGGED in kept:
                self._tr_loss += kept[_UNLOGGED]["attributes"]["loss"]
                self._globalstep_last_logged = max((step for step, _ in self._losses()), default=0)
        if not self.control.should_training_stop:
            super()._run_epoch(*args, **kwargs)

    def _losses(self) -> list[tuple[int, float]]:
        """The step of each log of a loss, and the mean since the log before."""
        return [(int(entry["step"]), entry["loss"]) for entry in self.state.log_history if "loss" in entry]

    def _unlogged(self) -> float:
        """The sum of the losses, each the processes' mean, of the steps since the last log."""
        return self.accelerator.gather(self._tr_loss).mean().item()

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        records = inputs.pop("records")
        self._images += len(inputs["pixel_values"]) if "pixel_values" in inputs else 0
        self._tokens += inputs.pop("real_tokens")
        self._places += inputs["input_ids"].numel()
        groups = [] if self.optimizer is None else self.optimizer.param_groups
        self._rates_used = {f"lr/{group['part']}": group["lr"] for group in groups}
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not math.isfinite(loss.item()):
            raise InputError(
                f"loss is {loss.item()} at step {self.state.global_step + 1}: "
                + (self._unusable_weights() or self._suspects(records))
            )
        return loss

    def _suspects(self, records: Sequence[int]) -> str:
        names = "; ".join(self._where(index) for index in records if index != FILLER)
        return f"the weights are numbers, so look at these records: {names}; or lower --learning_rate"

    def _unusable_weights(self) -> str | None:
        """Which weights are no numbers, and whether they came so or became so; None where all are."""
        learnt: set[str] = set()
        given: set[str] = set()
        for name, parameter in self.accelerator.unwrap_model(self.model).named_parameters():
            weight: Any = getattr(parameter, "ds_tensor", parameter).detach()  # this process's shard under ZeRO-3
            weight = weight.to_local() if hasattr(weight, "to_local") else weight  # and under FSDP
            if weight.is_floating_point() and not weight.to_dense().isfinite().all():
                (learnt if parameter.requires_grad else given).add(_WRAPPERS.sub("", name))
        if given or (learnt and self.state.global_step == self._first_step):
            return (
                f"the model to start from holds NaN or infinity in {list_names(given or learnt)}, and no record is at "
                "fault; fetch or convert it again"
            )
        if learnt:
            return f"training made NaN or infinity of {list_names(learnt)}; lower --learning_rate"
        return None

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The model's own loss, or with label smoothing ``Trainer``'s, over the labels that each position predicts."""
        if self.label_smoother is not None:
            inputs = {**inputs, "labels": inputs["shift_labels"]}
            del inputs["shift_labels"]
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """The mean loss of a target over the whole set, the same whatever the batches and the number of processes."""
        model = self.model_wrapped
        model.eval()  # DeepSpeed's engine returns nothing
        torch_state = torch.random.get_rng_state()  # of which the loader's iterator draws a number
        sums = torch.zeros(2, dtype=torch.float64, device=self.args.device)  # of losses and targets
        for batch in tqdm(dataloader, description, disable=self.args.disable_tqdm or self.args.process_index > 0):
            inputs = self._prepare_inputs(
                {name: batch[name] for name in batch if name not in ("records", "real_tokens")}
            )
            with torch.no_grad(), self.compute_loss_context_manager():
                loss = model(**inputs, num_items_in_batch=1).loss  # their sum
            following = inputs["shift_labels"] if "shift_labels" in inputs else inputs["labels"][:, 1:]
            sums += torch.stack([loss.double(), (following != IGNORE_INDEX).sum().double()])
        torch.random.set_rng_state(torch_state)
        total, targets = self.accelerator.reduce(sums, "sum").tolist()
        metrics = {f"{metric_key_prefix}_loss": total / targets}
        nothing: Any = None  # no predictions are kept
        return EvalLoopOutput(nothing, nothing, metrics, self.num_examples(dataloader))

    def evaluate_once(self) -> None:
        """Evaluates the model as it is, unless the last step did."""
        log = self.state.log_history
        if not any("eval_loss" in entry and entry["step"] == self.state.global_step for entry in log):
            self.evaluate()

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = super()._prepare_inputs(inputs)
        pixels = inputs.get("pixel_values")
        if pixels is None or pixels.dtype != torch.uint8:  # none, or a tower's features
            return inputs
        return {**inputs, "pixel_values": self._normalize(pixels)}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "train_loss" in logs:
            logs["train_loss"] = self._mean_loss()
        if "loss" in logs:
            logs |= self._speed()
            logs |= self._rates_used
        super().log(logs, start_time)

    def _mean_loss(self) -> float:
        """Of all steps of the run, where Trainer counts those of this start."""
        total, last = self._unlogged(), 0
        for step, loss in self._losses():
            total += loss * (step - last)
            last = step
        return total / max(1, self.state.global_step)

    def _speed(self) -> dict[str, float]:
        """Real tokens a second over all processes, their share of the places that a batch has for tokens, share of the
        device's peak FLOPs, most memory of this process."""
        now = time.monotonic()
        seconds, self._logged_at = now - self._logged_at, now
        counts = torch.tensor([self._tokens, self._places, self._images], device=self.args.device)
        tokens, places, images = self.accelerator.reduce(counts, "sum").tolist()
        self._tokens = self._places = self._images = 0
        speed = {"tokens_per_second": tokens / seconds, "images_per_second": images / seconds}
        speed["padding_efficiency"] = tokens / max(1, places)
        if self._peak is not None:
            flops = tokens * self._flops_a_token + images * self._flops_an_image
            speed["mfu"] = flops / seconds / self._peak / self.args.world_size
        return speed | {"memory_gb": memory_used(self.args.device) / 1e9}

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        """One order for all processes, a function of the seed and the epoch alone, whatever the number of processes."""
        args = self.args
        seed = order_seed(args)
        if self._lengths is not None:
            per_step = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
            order: Any = ModalitySampler(self._lengths, per_step, seed)
        elif args.train_sampling_strategy == "sequential":
            order = SequentialSampler(self.train_dataset)  # type: ignore[arg-type]
        else:
            order = SeedableRandomSampler(self.train_dataset, data_seed=seed)
        fills_up = args.world_size > 1 and not args.dataloader_drop_last
        return EpochSampler(order, args.train_batch_size * args.world_size if fills_up else 1)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Gathers shards on one process, of an adapter only what learns.

        Trainer would copy a frozen language model to save an adapter, and write no whole model under FSDP.
        """
        is_adapter = isinstance(self.accelerator.unwrap_model(self.model), PeftModel)
        if self.is_fsdp_enabled:
            from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

            options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=is_adapter)
            wrapped: Any = self.model
            self._save(output_dir, state_dict=get_model_state_dict(wrapped, options=options))
        elif is_adapter and self.is_deepspeed_enabled and not self._is_zero3:
            self._save(output_dir)
        else:
            super().save_model(output_dir, _internal_call)

    @property
    def _is_zero3(self) -> bool:
        return self.accelerator.state.deepspeed_plugin.zero_stage == 3

    def _get_output_dir(self, trial: Any = None) -> str:
        return str(self._writing or super()._get_output_dir(trial))

    _writing: Path | None = None  # the folder that a checkpoint is being written to

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Writes a checkpoint aside; it takes its place when every process has written its files."""
        self._writing = Path(str(self.args.output_dir)) / WRITING
        if self.args.should_save:
            shutil.rmtree(self._writing, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        kept: Any = self.state.stateful_callbacks
        kept[_UNLOGGED] = {"args": {}, "attributes": {"loss": self._unlogged()}}
        try:
            with writing(self._writing):
                super()._save_checkpoint(model, trial)
                best = self._best_checkpoint()
                self.state.best_model_checkpoint = best
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    written = self._writing / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
                    self.state.save_to_json(str(written / TRAINER_STATE_NAME))
                    publish(written, self.args, best)
        except InputError:
            shutil.rmtree(self._writing, ignore_errors=True)  # what is half written leaves a full disk
            raise
        finally:
            self._writing = None
        self.accelerator.wait_for_everyone()

    def _best_checkpoint(self) -> str | None:
        """Where the checkpoint with the best evaluation is or will be, if it was saved; the folder may have moved."""
        step = self.state.best_global_step
        place = Path(str(self.args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{step}"
        return str(place) if step and (step == self.state.global_step or place.exists()) else None

    def _finalize_training(self, *args: Any) -> Any:
        self.state.best_model_checkpoint = self._best_checkpoint()
        return super()._finalize_training(*args)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Writes what ``load_pretrained`` reads: the adapter, the projector in it, what it stands on, the processor.

        Everything is written aside and then moved into place, so that a file of ``output_dir`` is whole or the old one.
        """
        if not self.args.should_save:
            return
        target = Path(output_dir or str(self.args.output_dir))
        aside = target / SAVING
        shutil.rmtree(aside, ignore_errors=True)  # a killed process left it
        aside.mkdir(parents=True)
        try:
            super()._save(str(aside), state_dict)
            if self._base is not None:
                self._base.save(aside)
                _load_base_by_auto_class(aside / "adapter_config.json")
            for file in sorted(path for path in aside.rglob("*") if path.is_file()):
                place = target / file.relative_to(aside)
                place.parent.mkdir(exist_ok=True)
                file.replace(place)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _outlive_launcher(then: Callable[[int], None], worker: int) -> None:
    """Keeps a DataLoader worker alive when a launcher sends SIGTERM to all processes, while the run saves.

    SIGTERM from its own process still ends it: torchrun and SLURM tell the workers too, and only that process knows
    when they are no longer needed.
    """
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, daemon=True).start()
    then(worker)


def _end_with_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def _load_base_by_auto_class(adapter_config: Path) -> None:
    """Has ``AutoPeftModel`` load the base by the Auto class, which takes ``trust_remote_code``, not by its own."""
    settings = json.loads(adapter_config.read_text(encoding="utf-8"))
    settings["auto_mapping"] = {"base_model_class": "AutoModelForImageTextToText", "parent_library": "transformers"}
    adapter_config.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


class NumberedDataset(Dataset[dict[str, Any]]):
    """A dataset whose items know their number; number `FILLER` is a token without loss.

    accelerate tells the epoch to the sampler that it finds in a DataLoader, and else to the dataset. After a resume in
    the middle of an epoch on several processes the sampler lies a layer too deep for it (`skip_first_batches`), so the
    dataset passes the epoch on. Without this the order would be epoch 0's.
    """

    def __init__(self, dataset: Any, sampler: EpochSampler) -> None:
        self._dataset, self._sampler = dataset, sampler

    def set_epoch(self, epoch: int) -> None:
        self._sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == FILLER:
            item = {"input_ids": torch.zeros(1, dtype=torch.int64), "labels": torch.tensor([IGNORE_INDEX])}
        else:
            item = self._dataset[index]
        return {**item, "record": index}


class _NumberedCollator:
    """Keeps the numbers of a batch's items as ``records`` and counts their tokens as ``real_tokens``, both no tensors.

    With ``of_targets`` the model is asked for logits only where there is loss; it never makes a key-value cache.
    """

    def __init__(self, collate: Any, of_targets: bool) -> None:
        self._collate, self._of_targets = collate, of_targets

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        records = [example.pop("record") for example in examples]
        lengths = [len(example["input_ids"]) for example in examples]
        batch = self._collate(examples)
        if self._of_targets:
            batch = keep_targets(batch)
        real = sum(length for length, record in zip(lengths, records, strict=True) if record != FILLER)
        return {**batch, "use_cache": False, "records": records, "real_tokens": real}
