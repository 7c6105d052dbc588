"""ZeRO's checkpoints on another number of processes, by way of DeepSpeed's universal checkpoints."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from transformers import TrainingArguments

from llava_s2.errors import InputError
from llava_s2.files import sync_folder
from llava_s2.train.callbacks import without_launcher
from llava_s2.train.checkpoints import optimizer_shards
from llava_s2.train.output_folder import on_first_process


def reshard(checkpoint: Path, training: TrainingArguments) -> None:
    """Has DeepSpeed read a checkpoint's optimizer state on other processes than wrote it.

    The first time the state is written again beside its shards, whole (about as many bytes). Nothing is done where the
    number of processes is the same.

    Raises:
        InputError: DeepSpeed cannot convert it.
    """
    shards = optimizer_shards(checkpoint)
    if not training.deepspeed or shards == training.world_size:
        return
    on_first_process(training, lambda: _convert(checkpoint, training.world_size, shards))
    training.hf_deepspeed_config.config["checkpoint"] = {"load_universal": True}


def _convert(checkpoint: Path, processes: int, shards: int) -> None:
    step = (checkpoint / "latest").read_text().strip()
    tag, partial = f"{step}_universal", checkpoint / "universal.partial"
    if not (checkpoint / tag).exists():
        print(f"{checkpoint}: ZeRO's state of {shards} processes is converted for {processes}", flush=True)
        shutil.rmtree(partial, ignore_errors=True)
        command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
        command += ["--input_folder", str(checkpoint / step), "--output_folder", str(partial)]
        done = subprocess.run(command, env=without_launcher(os.environ), capture_output=True, text=True)
        if done.returncode:
            told = done.stderr.strip().splitlines()[-1:] or ["no reason told"]
            raise InputError(f"{checkpoint}: DeepSpeed cannot convert it for {processes} processes ({told[0]})")
        sync_folder(partial)
        partial.rename(checkpoint / tag)
    (checkpoint / "latest_universal").write_text(tag)
