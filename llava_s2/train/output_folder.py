"""The folder that a run writes to: whose it is, where the run goes on, and whether it is finished."""

import fcntl
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import distributed
from transformers import TrainingArguments
from transformers.utils import logging

from llava_s2.errors import InputError
from llava_s2.files import atomic_write
from llava_s2.train.checkpoints import RUN, SAVING, WRITING, check_can_go_on, find_checkpoint, steps_done
from llava_s2.train.fingerprint import differences, run_length

logger = logging.get_logger(__name__)
_T = TypeVar("_T")

_LOCK = ".run.lock"
# What a run leaves in its folder; the first four are a model.
_MODEL = ("adapter_model.safetensors", "model*.safetensors", "model.safetensors.index.json", "pytorch_model*.bin")
_LEFT: tuple[str, ...] = (
    *_MODEL,
    "adapter_config.json",
    "config.json",
    "checkpoint-*",
    RUN,
    WRITING,
    SAVING,
    "trainer_state.json",
)
_LEFT += (
    "base",
    "llava_s2_base.json",
    "training_args.bin",
    "loss.png",
    "bad_samples.jsonl",
    "eval",
    "mm_projector.bin",
    "non_lora_trainables.*",
)


@dataclass(frozen=True)
class Start:
    """Where a run starts.

    Attributes:
        checkpoint: to go on from, or None.
        finished: steps of the run if it is finished, else None.
    """

    checkpoint: Path | None
    finished: int | None

    def describe(self) -> str:
        """Words for a person, such as ``goes on from step 20, checkpoint-20``."""
        if self.checkpoint is None:
            return "starts at step 0"
        return f"goes on from step {steps_done(self.checkpoint)}, {self.checkpoint}"


@contextmanager
def locked(training: TrainingArguments) -> Iterator[None]:
    """Keeps other runs out of ``output_dir`` until the block, or this process, ends.

    Raises:
        InputError: another process is training into it.
    """
    path = Path(str(training.output_dir)) / _LOCK
    held = on_first_process(training, lambda: _lock(path), keep=True)
    try:
        yield
    finally:
        if held is not None:
            path.unlink(missing_ok=True)
            os.close(held)


def check_inputs(training: TrainingArguments, inputs: Iterable[str | None]) -> None:
    """Raises InputError where something that a run reads lies where it writes, and would be replaced or deleted."""
    output_dir = Path(str(training.output_dir)).resolve()
    for name in filter(None, inputs):
        path = Path(name).resolve()
        inside = output_dir in path.parents and _is_result(path.relative_to(output_dir).parts[0])
        if path.exists() and (path == output_dir or inside):
            raise InputError(f"{name}: would be overwritten by the result of this run; name another --output_dir")


def claim(training: TrainingArguments, wanted: dict[str, Any], overwrite: bool) -> Start:
    """Decides, on the first process for all, where the run starts in ``output_dir``, and records it there.

    Args:
        wanted: the run's `fingerprint`.
        overwrite: to remove what a run left there, and start anew.

    Raises:
        InputError: the folder holds another run, a run that cannot go on, or a model that no run recorded.
    """
    return on_first_process(training, lambda: _claim(training, wanted, overwrite))


def finish(training: TrainingArguments, steps: int) -> None:
    """Records that the run in ``output_dir`` is finished."""
    path = Path(str(training.output_dir)) / RUN
    _write(path, _read(path) | {"finished": steps})


def on_first_process(training: TrainingArguments, work: Callable[[], _T], *, keep: bool = False) -> _T:
    """What ``work`` returns on the first process, on all of them; its InputError too.

    Args:
        keep: for a value that has a meaning on the first process alone; the others get None.
    """
    outcome: list[Any] = [None, None]
    if training.process_index == 0:
        try:
            outcome[0] = work()
        except InputError as error:
            outcome[1] = str(error)
    if training.world_size > 1:
        told = [None if keep else outcome[0], outcome[1]]
        distributed.broadcast_object_list(told, device=training.device)
        outcome = [outcome[0] if keep else told[0], told[1]]
    if outcome[1] is not None:
        raise InputError(outcome[1])
    return outcome[0]


def _claim(training: TrainingArguments, wanted: dict[str, Any], overwrite: bool) -> Start:
    output_dir = Path(str(training.output_dir))
    anew = "--overwrite_output_dir deletes it and starts anew, another --output_dir leaves it as it is"
    if overwrite:
        _remove_run(output_dir)
    record = _read(output_dir / RUN)
    checkpoint = find_checkpoint(training)
    has_model = any(any(output_dir.glob(pattern)) for pattern in _MODEL)
    finished = record.get("finished") if has_model else None
    named = str(training.resume_from_checkpoint or "").lower() not in ("", "true", "false")
    recorded = record.get("fingerprint")
    if checkpoint is not None and (checkpoint / RUN).exists():
        recorded = _read(checkpoint / RUN).get("fingerprint")
    if recorded is None and (checkpoint is not None or has_model):
        what = "checkpoints" if checkpoint is not None else "a model"
        told = f"{output_dir}: holds {what} without {RUN}, so with what flags they were trained is not known"
        if checkpoint is None or training.resume_from_checkpoint is None:
            raise InputError(
                f"{told}; {anew}" + ("" if checkpoint is None else "; --resume_from_checkpoint True trusts it")
            )
        logger.warning(f"{told}; they are trusted, because --resume_from_checkpoint names them")
    there_is_one = checkpoint is not None or finished is not None
    if there_is_one and recorded is not None and (changed := differences(recorded, wanted)):
        raise InputError(f"{output_dir}: holds another run, which differs in {'; '.join(changed)}. {anew}")
    length = run_length(training)
    if finished is not None and not named and record.get("length", length) == length:
        return Start(checkpoint, finished)
    if checkpoint is not None:
        check_can_go_on(checkpoint, training)
    if checkpoint is not None and 0 < training.max_steps < steps_done(checkpoint):
        raise InputError(f"{checkpoint}: has gone further than --max_steps {training.max_steps}; {anew}")
    _write(output_dir / RUN, {"fingerprint": wanted, "length": length, "finished": None})
    return Start(checkpoint, None)


def _is_result(name: str) -> bool:
    return any(Path(name).match(pattern) for pattern in _LEFT)


def _remove_run(output_dir: Path) -> None:
    for pattern in _LEFT:
        for path in output_dir.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); --overwrite_output_dir starts anew") from None
    if not isinstance(record, dict) or not isinstance(record.get("fingerprint"), dict):
        raise InputError(f"{path}: not the record of a run; --overwrite_output_dir starts anew")
    return record


def _write(path: Path, record: dict[str, Any]) -> None:
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(record, indent=1), encoding="utf-8")


def _lock(path: Path) -> int:
    """Locks a file for this process and returns its descriptor.

    A POSIX lock: it ends with the process that took it, whatever children (DataLoader workers) live on, and works over
    NFS. The file names the holder; it is removed while it is locked, so one that is locked must still be in its place.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output_dir {path.parent}: cannot be made ({error.strerror})") from None
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            holder = os.read(descriptor, 200).decode(errors="replace")
            os.close(descriptor)
            raise InputError(
                f"{path.parent}: {holder or 'another process'} is training into it; wait for its end, or "
                "name another --output_dir"
            ) from None
        except OSError as error:
            logger.warning(f"{path}: cannot be locked ({error.strerror}); see that no other run writes there")
        if path.exists() and path.stat().st_ino == os.fstat(descriptor).st_ino:
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
            return descriptor
        os.close(descriptor)
