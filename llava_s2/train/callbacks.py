"""What happens beside the steps: a save on SIGTERM, scores of checkpoints, a plot of the loss."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import distributed
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from llava_s2.data.bad_samples import count_bad
from llava_s2.errors import InputError
from llava_s2.files import atomic_write

logger = logging.get_logger(__name__)

_FEWEST_SEEN = 1000  # records, before the share of bad ones among them means anything

# What torchrun, deepspeed and accelerate tell their processes, and a program that one of them starts must not hear.
_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_", "ACCELERATE_", "FSDP_")


def without_launcher(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without what a launcher tells its processes."""
    return {name: value for name, value in environment.items() if not name.startswith(_LAUNCHER)}


class StopOnSignal(TrainerCallback):
    """On SIGTERM, which a scheduler sends before it takes a machine away: saves after the step at hand, then exits.

    The processes agree after every step, so that all of them save the same one even if the signal reached only one.
    The exit status is 143, as of a program that SIGTERM ended.
    """

    def __init__(self) -> None:
        self._asked = self._stops = False
        self._before: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if threading.current_thread() is threading.main_thread():  # under Ray it is another
            self._before = signal.signal(signal.SIGTERM, self._ask)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        asked = torch.tensor(int(self._asked), device=args.device)
        if args.world_size > 1:
            distributed.all_reduce(asked, op=distributed.ReduceOp.MAX)
        if asked.item() and state.global_step < state.max_steps:
            self._stops = control.should_save = True
        return control

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._stops:  # here, for what Trainer does at the end of a training is not to be done now
            raise SystemExit(128 + signal.SIGTERM)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        logger.warning("SIGTERM: saving after this step, then stopping; the same command goes on from there")


class GoOn(TrainerCallback):
    """What Trainer leaves out where a run goes on, or would go on.

    It saves, logs and evaluates as often as its flags say now, where Trainer would take the intervals of the run that
    wrote the checkpoint. A run whose last step is done makes no more. A checkpoint of the last step of an epoch, or of
    the run, is saved after what happens at the epoch's end (an evaluation, a log), which a run that goes on from there
    comes no more by. A step that evaluates best is saved where the best one is to be the result, however seldom steps
    are saved.
    """

    def __init__(self) -> None:
        self._saves = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        state.compute_steps(args, state.max_steps)
        args.eval_on_start &= state.global_step == 0
        if state.global_step > state.max_steps:
            raise InputError(
                f"{args.output_dir}: its run has gone to step {state.global_step}, further than --num_train_epochs "
                f"{args.num_train_epochs} asks for ({state.max_steps}); name as many, or another --output_dir"
            )
        control.should_training_stop |= state.global_step == state.max_steps
        return control

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        if control.should_training_stop or float(state.epoch or 0).is_integer():
            self._saves, control.should_save = control.should_save, False
        return control

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        control.should_save |= self._saves
        self._saves = False
        return control

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        best = state.best_metric
        if args.load_best_model_at_end and (best is None or kwargs["metrics"]["eval_loss"] < best):
            control.should_save = True
        return control


class StopEarly(TrainerCallback):
    """Ends a run whose ``eval_loss`` has not been lower for some evaluations.

    It goes by the log alone, so that a run that goes on counts those before.
    """

    def __init__(self, patience: int) -> None:
        self._patience = patience

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        losses = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
        if losses and len(losses) - 1 - losses.index(min(losses)) >= self._patience:
            control.should_training_stop = True
        return control

    on_train_begin = on_evaluate  # of a run that goes on where it had been stopped


class StopOnBadSamples(TrainerCallback):
    """Ends a run when too many of its records could not be used.

    Args:
        log: of `llava_s2.data.bad_samples`, to which all processes write.
        share: of the records seen so far that may be bad; so far means 1,000 at least, or all of a smaller set.
        records: how many there are.
    """

    def __init__(self, log: Path, share: float, records: int) -> None:
        self._log, self._share, self._records = log, share, records
        self._size = 0

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        size = self._log.stat().st_size if self._log.exists() else 0
        if size != self._size:
            self._size = size
            seen = max(int((state.epoch or 0) * self._records), _FEWEST_SEEN)
            check_share(count_bad(self._log), min(seen, self._records), self._share, self._log)


def check_share(bad: int, seen: int, share: float, log: Path) -> None:
    """Raises InputError where more than a share of the records seen is bad."""
    if bad > share * seen:
        raise InputError(
            f"{bad} of the {seen:,} records seen so far were bad, more than --max_bad_share {share}; {log} names them"
        )


class ScoreCheckpoints(TrainerCallback):
    """Scores checkpoints on a benchmark with ``llava-s2 eval``, a program of its own, and logs the report's scores.

    The evaluation loads what was saved, so its number is what a user of the checkpoint will see; the other processes
    wait for it. One that fails is told and does not end the training.

    Args:
        task, data, limit: as ``llava-s2 eval TASK --data DIR --limit N``.
    """

    def __init__(self, task: str, data: str, limit: int | None) -> None:
        self._command = [sys.executable, "-m", "llava_s2.cli", "eval", task, "--data", data]
        self._command += [] if limit is None else ["--limit", str(limit)]
        self._task = task
        self.trainer: Any = None

    def _is_due(self, args: TrainingArguments, state: TrainerState) -> bool:
        return state.global_step % int(args.eval_steps or args.save_steps) == 0 or state.global_step == state.max_steps

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        control.should_save |= self._is_due(args, state)
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not self._is_due(args, state):
            return
        scores: dict[str, float] = {}
        if state.is_world_process_zero:
            folder = Path(str(args.output_dir))
            checkpoint = folder / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            output = folder / "eval" / f"{self._task}-{state.global_step}"
            scores = self._score(checkpoint, output)
        if args.world_size > 1:
            distributed.barrier()
        self.trainer.log({f"eval/{self._task}/{name}": score for name, score in scores.items()})

    def _score(self, checkpoint: Path, output: Path) -> dict[str, float]:
        command = [*self._command, "--model", str(checkpoint), "--output", str(output)]
        done = subprocess.run(command, env=without_launcher(os.environ), stdout=sys.stderr)
        if done.returncode:
            logger.warning(f"{' '.join(command)} failed with {done.returncode}; training goes on")
            return {}
        return read_scores(output / "report.json")


def read_scores(report: Path) -> dict[str, float]:
    """Accuracy of every category of an evaluation's ``report.json``, and ``overall``."""
    return {category: row["accuracy"] for category, row in json.loads(report.read_text())["results"].items()}


def plot_losses(history: list[dict[str, float]], file: Path) -> bool:
    """Draws the losses of a ``log_history`` and their running mean; False where matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure

    points = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss")
    if points:
        steps, losses = zip(*points, strict=True)
        axes.plot(steps, losses, alpha=0.35, linewidth=1)
        mean, means = losses[0], []
        for loss in losses:
            mean += 0.1 * (loss - mean)
            means.append(mean)
        axes.plot(steps, means, linewidth=2, label="running mean")
        axes.legend()
    with atomic_write(file) as partial:
        figure.savefig(partial, format="png", dpi=120)
    return True
