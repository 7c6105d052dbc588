"""Checkpoints of a run: which one to go on from, and how one appears whole or not at all."""

import json
import os
import shutil
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from llava_s2.errors import InputError
from llava_s2.files import sync_folder

# What a run is, in its output folder and in every checkpoint.
RUN = "run.json"
# Where a checkpoint is written before it is moved to its place, in the output folder.
WRITING = ".writing"


def find_checkpoint(training: TrainingArguments) -> Path | None:
    """The checkpoint named by ``--resume_from_checkpoint``, or the newest whole one in ``output_dir``, or none.

    Raises:
        InputError: what is named is no whole checkpoint.
    """
    named = training.resume_from_checkpoint
    if named is not None and str(named).lower() == "false":
        return None
    if named is not None and str(named).lower() != "true":
        if not _is_whole(Path(named)):
            raise InputError(f"--resume_from_checkpoint {named}: no whole checkpoint (trainer_state.json is missing)")
        return Path(named)
    folders = Path(str(training.output_dir)).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    numbered = [folder for folder in folders if folder.name.rpartition("-")[2].isdigit() and _is_whole(folder)]
    if not numbered and named is not None:
        raise InputError(f"--resume_from_checkpoint True: no whole checkpoint in {training.output_dir}")
    return max(numbered, key=lambda folder: int(folder.name.rpartition("-")[2])) if numbered else None


def check_can_go_on(checkpoint: Path, training: TrainingArguments) -> None:
    """Looks whether a run can go on from a checkpoint, as a finished one need not.

    Raises:
        InputError: it lacks what a run needs to go on, or another backend (DeepSpeed, FSDP, neither) wrote it.
    """
    _check_backend(checkpoint, training)
    _check_state(checkpoint)


def steps_done(checkpoint: Path) -> int:
    """Optimizer steps that a whole checkpoint has behind it."""
    return json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]


def publish(written: Path, training: TrainingArguments, best: str | None) -> None:
    """Moves a checkpoint that all processes have written to its place, and removes those past ``save_total_limit``.

    Args:
        best: the checkpoint that stays in any case.
    """
    output_dir = Path(str(training.output_dir))
    place = output_dir / written.name
    shutil.copy(output_dir / RUN, written / RUN)
    sync_folder(written)
    if place.exists():  # cut off by a program that wrote in place, or written again after a resume from an older one
        place.rename(written.parent / "replaced")
    written.rename(place)
    shutil.rmtree(written.parent)
    rotate_checkpoints(
        output_dir=str(output_dir), save_total_limit=training.save_total_limit, best_model_checkpoint=best
    )


def _is_whole(checkpoint: Path) -> bool:
    """Trainer writes a checkpoint's ``trainer_state.json`` last."""
    try:
        steps_done(checkpoint)
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return True


# Without one of these Trainer goes on in silence: with new moments, another rate, other random numbers.
_STATE = {
    "optimizer": ("optimizer.pt", "optimizer.bin", "optimizer_*", "global_step*"),
    "schedule": ("scheduler.pt", "global_step*"),
    "random numbers": ("rng_state*.pth",),
}


_WEIGHTS = ("adapter_model.*", "model*.safetensors", "pytorch_model*", "global_step*")


def _check_state(checkpoint: Path) -> None:
    way_out = "delete this checkpoint to go on from the one before, or start anew with --overwrite_output_dir"
    if not any(any(checkpoint.glob(pattern)) for pattern in _WEIGHTS):
        raise InputError(f"{checkpoint}: there are no weights in it, so the run cannot go on; {way_out}")
    for file in sorted(checkpoint.iterdir()):
        if not _is_readable(file):
            raise InputError(f"{file}: damaged or cut off, so the run cannot go on; {way_out}")
    for what, patterns in _STATE.items():
        if not any(any(checkpoint.glob(pattern)) for pattern in patterns):
            raise InputError(
                f"{checkpoint}: the state of the {what} is not in it (--save_only_model leaves it out), so the run "
                "cannot go on; start anew with --overwrite_output_dir, or from it in another --output_dir with "
                f"--model_name_or_path {checkpoint}"
            )


def _is_readable(file: Path) -> bool:
    """Whether a file of tensors is whole, by what tells where they are: at its end, or its beginning and its size."""
    if file.suffix in (".pt", ".pth"):
        return zipfile.is_zipfile(file)
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, "pt"):
                return True
        except SafetensorError:
            return False
    return True


def optimizer_shards(checkpoint: Path) -> int:
    """Of how many processes ZeRO's optimizer state is; 0 where another backend wrote the checkpoint."""
    return len(list(checkpoint.glob("global_step*/*_optim_states.pt")))


def _check_backend(checkpoint: Path, training: TrainingArguments) -> None:
    """What a checkpoint was written in must be what the run reads."""
    shards = optimizer_shards(checkpoint)
    anew = "; or start anew in another --output_dir, from this checkpoint with --model_name_or_path"
    if shards and not training.deepspeed:
        raise InputError(
            f"{checkpoint}: ZeRO's optimizer state, which only DeepSpeed reads; go on with --deepspeed{anew}"
        )
    if training.deepspeed and not shards:
        raise InputError(f"{checkpoint}: was written without DeepSpeed; go on without --deepspeed{anew}")
    sharded = any(checkpoint.glob("pytorch_model_fsdp*"))
    uses_fsdp = bool(training.fsdp) or "ACCELERATE_USE_FSDP" in os.environ
    if sharded != uses_fsdp:
        raise InputError(f"{checkpoint}: was written with{'' if sharded else 'out'} --fsdp; go on in that way{anew}")
