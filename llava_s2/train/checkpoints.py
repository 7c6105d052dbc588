"""Checkpoints of a run: which one to go on from, and how one appears whole or not at all."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from llava_s2.errors import InputError
from llava_s2.files import sync_folder

# What a run is, in its output folder and in every checkpoint.
RUN = "run.json"
# Where a checkpoint is written before it is moved to its place, in the output folder.
WRITING = ".writing"
# Where a model's files are written before they are moved to their places, in the folder that they are for.
SAVING = ".saving"


_ANEW = "start anew with --overwrite_output_dir"


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
    best = _trainer_state(checkpoint).get("best_global_step") if training.load_best_model_at_end else None
    if best and not (Path(str(training.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{best}").is_dir():
        raise InputError(
            f"{checkpoint}: step {best} evaluated best, and {PREFIX_CHECKPOINT_DIR}-{best} is not in "
            f"{training.output_dir}, so --load_best_model_at_end cannot load it; copy it there, or {_ANEW}"
        )


def steps_done(checkpoint: Path) -> int:
    """Optimizer steps that a whole checkpoint has behind it."""
    return _trainer_state(checkpoint)["global_step"]


def _trainer_state(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))


def publish(written: Path, training: TrainingArguments, best: str | None) -> None:
    """Moves a checkpoint that all processes have written to its place, and removes those past ``save_total_limit``.

    ``run.json`` in it has the checksum of every file, of each process's shards too, for what is lost or changed later.

    Args:
        best: the checkpoint that stays in any case.
    """
    output_dir = Path(str(training.output_dir))
    place = output_dir / written.name
    record = json.loads((output_dir / RUN).read_text(encoding="utf-8"))
    names = [str(file.relative_to(written)) for file in written.rglob("*") if file.is_file()]
    record |= {"files": _checksums(written, names)}
    (written / RUN).write_text(json.dumps(record, indent=1), encoding="utf-8")
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
    way_out = f"delete this checkpoint to go on from the one before, or {_ANEW}"
    if not any(any(checkpoint.glob(pattern)) for pattern in _WEIGHTS):
        raise InputError(f"{checkpoint}: there are no weights in it, so the run cannot go on; {way_out}")
    for what, patterns in _STATE.items():
        if not any(any(checkpoint.glob(pattern)) for pattern in patterns):
            raise InputError(
                f"{checkpoint}: the state of the {what} is not in it (--save_only_model leaves it out), so the run "
                f"cannot go on; {_ANEW}, or from it in another --output_dir with --model_name_or_path {checkpoint}"
            )
    run = checkpoint / RUN
    recorded = json.loads(run.read_text(encoding="utf-8")).get("files", {}) if run.exists() else {}
    for name, found in _checksums(checkpoint, recorded).items():
        if found != recorded[name]:
            raise InputError(f"{checkpoint / name}: missing, damaged or cut off, so the run cannot go on; {way_out}")


def _checksums(folder: Path, names: Iterable[str]) -> dict[str, str | None]:
    """Checksums of all of each file, in threads, for shards are large; None of a file that is missing."""

    def checksum(name: str) -> str | None:
        digest, block = hashlib.sha256(), bytearray(1 << 20)
        try:
            with (folder / name).open("rb") as file:
                while count := file.readinto(block):
                    digest.update(memoryview(block)[:count])
        except FileNotFoundError:
            return None
        return digest.hexdigest()[:32]

    names = list(names)
    with ThreadPoolExecutor() as threads:
        return dict(zip(names, threads.map(checksum, names), strict=True))


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
    zero3 = any(checkpoint.glob("global_step*/zero_pp_rank_*_model_states.pt"))
    if training.deepspeed and zero3 != training.hf_deepspeed_config.is_zero3():
        stage = "3" if zero3 else "2 or 1"
        raise InputError(f"{checkpoint}: was written under ZeRO-{stage}; go on with such a config{anew}")
    sharded = any(checkpoint.glob("pytorch_model_fsdp*"))
    uses_fsdp = bool(training.fsdp) or "ACCELERATE_USE_FSDP" in os.environ
    if sharded != uses_fsdp:
        raise InputError(f"{checkpoint}: was written with{'' if sharded else 'out'} --fsdp; go on in that way{anew}")
