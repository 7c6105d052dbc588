"""Kills a training run again and again, starts the same command each time, and compares with a run never killed.

    python tests/train/kills.py FOLDER --kills 20

Half of the kills come while a checkpoint is being written. The last line printed is JSON: ``kills``, ``in_write`` of
them in a write, ``steps`` of the run, ``equal`` (losses and final weights, bit by bit).
"""

import argparse
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from processes import TINY, losses, write_records
from safetensors.torch import load_file

from llava_s2.cli import main
from llava_s2.train import recipe  # noqa: F401 - imported once, for all the runs forked off
from llava_s2.train.checkpoints import WRITING

STEPS = 60


def fork(flags, log):
    """The process id of a training run whose output goes to ``log``."""
    process = os.fork()
    if process:
        return process
    with log.open("w", buffering=1) as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        sys.stdout = sys.stderr = output
        os._exit(main(["train", "finetune", *map(str, [*TINY, *flags])]))


def wait(process, seconds=0.0):
    """Exit status of a process that has ended within the time, else None; 0 seconds do not wait."""
    end = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= end:
            return None
        time.sleep(0.002)


def kill_in_run(flags, folder, after, in_write):
    """Starts a run and kills it ``after`` more losses, in a write if asked; None if it ended before, else how."""
    log = folder / "log.txt"
    process = fork(flags, log)
    while wait(process) is None:
        writes = (folder / "killed" / WRITING).exists()
        if log.exists() and log.read_text().count("'loss'") >= after and (writes or not in_write):
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return writes
        time.sleep(0.002)
    return None


def run(folder, kills, seed):
    draw = random.Random(seed)
    flags = [*write_records(folder, lambda number: number % 3), "--max_steps", STEPS, "--save_steps", 3]
    flags += ["--per_device_train_batch_size", 4, "--packing", "True", "--group_by_modality_length", "True"]
    flags += ["--save_total_limit", 2]
    assert wait(fork([*flags, "--output_dir", folder / "whole"], folder / "whole.txt"), 300) == 0
    flags += ["--output_dir", folder / "killed"]
    landed = []
    while len(landed) < kills:
        done = kill_in_run(flags, folder, draw.randint(0, STEPS // kills + 2), len(landed) % 2)
        if done is None:
            break
        landed.append(done)
    assert wait(fork(flags, folder / "log.txt"), 300) == 0
    pair = folder / "whole", folder / "killed"
    one, other = (load_file(run / "adapter_model.safetensors") for run in pair)
    equal = losses(pair[0]) == losses(pair[1]) and all(one[name].equal(other[name]) for name in one)
    left = [path.name for path in (folder / "killed").iterdir() if path.name.startswith(".")]
    print(json.dumps({"kills": len(landed), "in_write": sum(landed), "steps": STEPS, "equal": equal, "left": left}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    run(arguments.folder, arguments.kills, arguments.seed)
