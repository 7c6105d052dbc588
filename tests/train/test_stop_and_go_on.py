"""A run that is killed, pre-empted, or goes on with fewer processes ends as one that was left alone."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import TINY, losses, run_here, start, write_records

from llava_s2.cli import main


def test_killed_at_any_step_it_goes_on_as_if_nothing_had_been(tmp_path):
    script = [sys.executable, Path(__file__).with_name("kills.py"), tmp_path, "--kills", "5", "--seed", "3"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["kills"] == 5 and report["in_write"] >= 2
    assert report["equal"]
    assert not report["left"]


def test_sigterm_saves_first_and_one_process_goes_on_from_two(tmp_path):
    steps = ["--max_steps", 60, "--save_steps", 1000, "--lora_dropout", 0]
    flags = [*write_records(tmp_path, lambda number: number % 3), *steps]
    process = start([*flags, "--per_device_train_batch_size", 2, "--output_dir", tmp_path / "stopped"], processes=2)
    assert process.stdout is not None
    seen = 0
    for line in process.stdout:
        seen += "'loss'" in line
        if seen == 3:
            process.send_signal(signal.SIGTERM)
            break
    rest = process.stdout.read()
    assert process.wait(timeout=60) != 0
    assert "SIGTERM: saving after this step" in rest
    (checkpoint,) = (tmp_path / "stopped").glob("checkpoint-*")
    assert 3 <= int(checkpoint.name.split("-")[1]) < 60
    assert not (tmp_path / "stopped" / "adapter_model.safetensors").exists()  # not taken for finished

    flags += ["--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 2]
    run_here([*flags, "--output_dir", tmp_path / "stopped"])
    run_here([*flags, "--output_dir", tmp_path / "whole"])
    assert losses(tmp_path / "stopped") == pytest.approx(losses(tmp_path / "whole"), abs=1e-4)


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("global_step2/zero_pp_rank_{}_mp_rank_00_optim_states.pt", "ZeRO's state, which only DeepSpeed reads"),
        ("pytorch_model_fsdp_0/{}.distcp", "was written with --fsdp"),
    ],
)
def test_a_checkpoint_in_shards_that_this_run_cannot_read(written, told, tmp_path, capsys):
    records = write_records(tmp_path, lambda number: number % 3)
    checkpoint = tmp_path / "out" / "checkpoint-2"
    for rank in range(2):
        shard = checkpoint / written.format(rank)
        shard.parent.mkdir(parents=True, exist_ok=True)
        shard.touch()
    for state in ("scheduler.pt", "rng_state_0.pth", "optimizer_0"):
        (checkpoint / state).touch()
    (checkpoint / "trainer_state.json").write_text("{}")
    assert main(["train", "finetune", *map(str, [*TINY, *records, "--output_dir", tmp_path / "out"])]) == 2
    assert f"checkpoint-2: {told}" in capsys.readouterr().err
