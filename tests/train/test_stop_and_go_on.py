"""A run that is killed, pre-empted, or goes on with fewer processes ends as one that was left alone."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import TINY, losses, run, run_here, start, write_records
from test_distributed import BACKENDS

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


PER_EPOCH = 10  # steps: 80 records in batches of 8


def test_stopped_and_killed_on_two_processes_it_ends_as_one_process_does(tmp_path):
    """SIGTERM in the second epoch; then one process is killed in the third, and torchrun starts both again."""
    flags = [*write_records(tmp_path, lambda number: number % 3), "--num_train_epochs", 3, "--lora_dropout", 0]
    flags += ["--group_by_modality_length", "True", "--packing", "True"]
    two = [*flags, "--per_device_train_batch_size", 4, "--dataloader_num_workers", 1]
    two += ["--output_dir", tmp_path / "two", "--save_steps"]
    (tmp_path / "ids").mkdir()
    logged = {"program": Path(__file__).with_name("ids_logged.py")}
    environment = {"LLAVA_S2_IDS": str(tmp_path / "ids")}

    process = start([*two, 1000], 2, environment, **logged)
    wait_for_losses(process, PER_EPOCH + 3)
    process.send_signal(signal.SIGTERM)
    assert "SIGTERM: saving after this step" in process.stdout.read()
    assert process.wait(timeout=60) != 0
    (checkpoint,) = (tmp_path / "two").glob("checkpoint-*")
    stopped_at = int(checkpoint.name.split("-")[1])
    assert PER_EPOCH < stopped_at < 2 * PER_EPOCH
    assert not (tmp_path / "two" / "adapter_model.safetensors").exists()  # not taken for finished
    shutil.copytree(tmp_path / "two", tmp_path / "one")

    process = start([*two, 2], 2, environment, **logged, launcher=["--max_restarts", "3"])
    wait_for_losses(process, 2 * PER_EPOCH + 5 - stopped_at)
    os.kill(max(workers(process)), signal.SIGKILL)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed[-3000:]
    assert "goes on from step 2" in printed  # of its last checkpoint, in the third epoch

    alone = [*flags, "--per_device_train_batch_size", 8, "--output_dir"]
    run_here([*alone, tmp_path / "one"])
    run_here([*alone, tmp_path / "whole"])
    whole = losses(tmp_path / "whole")
    assert len(whole) == 3 * PER_EPOCH
    assert losses(tmp_path / "two") == pytest.approx(whole, abs=1e-4)
    assert losses(tmp_path / "one") == pytest.approx(whole, abs=1e-4)

    seen = {}  # the last that was seen at a step counts: steps after a checkpoint are done again
    for file in sorted((tmp_path / "ids").iterdir(), key=lambda path: path.stat().st_mtime):
        for line in map(json.loads, file.read_text().splitlines()):
            seen[file.name, line["step"]] = line["records"]
    for epoch in range(3):
        steps = range(epoch * PER_EPOCH, (epoch + 1) * PER_EPOCH)
        for step in steps:
            versions = [sorted(ids) for (_, at), ids in seen.items() if at == step]
            assert len({tuple(ids) for ids in versions}) == 2  # one batch a process, the same after every start
        ids = {index for (_, at), records in seen.items() if at in steps for index in records}
        assert ids == set(range(80))


@pytest.fixture(scope="module")
def an_epoch(tmp_path_factory):
    """Flags, and the losses of one process that nobody stopped. Projector and LoRA have rates of their own."""
    folder = tmp_path_factory.mktemp("epoch")
    flags = [*write_records(folder, lambda number: number % 3), "--num_train_epochs", 1, "--lora_dropout", 0]
    flags += ["--weight_decay", "0.1"]
    run_here([*flags, "--per_device_train_batch_size", 8, "--output_dir", folder / "whole"])
    return flags, losses(folder / "whole")


@pytest.mark.parametrize("backend", ["zero3", "fsdp2"])
def test_shards_of_two_processes_go_on_on_one(an_epoch, backend, tmp_path):
    flags, whole = an_epoch
    flags = [*flags, *BACKENDS[backend], "--output_dir", tmp_path / "out", "--per_device_train_batch_size"]
    process = start([*flags, 4], processes=2)
    wait_for_losses(process, 3)
    process.send_signal(signal.SIGTERM)
    assert "SIGTERM: saving after this step" in process.communicate(timeout=120)[0]
    run([*flags, 8], processes=1)
    assert losses(tmp_path / "out") == pytest.approx(whole, abs=1e-4)


def wait_for_losses(process, count):
    """Reads what a run prints until it has told that many losses."""
    for line in process.stdout:
        count -= "'loss'" in line
        if count == 0:
            return
    raise AssertionError("ended early")


def workers(process):
    """The training processes under a launcher."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [pid for pid in map(int, children) if b"ids_logged.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]


AT_EPOCHS = ["--eval_split", 0.1, "--eval_on_start", "True", "--eval_strategy", "epoch", "--logging_strategy", "epoch"]
BEST = ["--eval_split", 0.1, "--learning_rate", "0.05", "--num_train_epochs", 9, "--eval_steps", 3, "--save_steps", 12]
BEST += ["--load_best_model_at_end", "True", "--early_stopping_patience", 2]


@pytest.mark.parametrize(
    "flags",
    [
        ["--max_steps", 13, "--logging_steps", 5, "--save_steps", 4],
        [*AT_EPOCHS, "--save_steps", 9, "--num_train_epochs", 2],
        BEST,
    ],
    ids=["in an epoch", "at its end", "at the best"],
)
def test_cut_off_after_a_checkpoint_and_moved_it_logs_and_ends_the_same(flags, tmp_path):
    """The last checkpoint is there without the result, or the one before is the last."""
    records = write_records(tmp_path, lambda number: number % 3)
    flags = [*records, "--per_device_train_batch_size", 8, "--lr_scheduler_type", "constant", *flags]
    whole = tmp_path / "whole"
    run_here([*flags, "--output_dir", whole])
    checkpoints = sorted(whole.glob("checkpoint-*"), key=lambda place: int(place.name.split("-")[1]))
    for number in (1, 2):
        moved = shutil.copytree(whole, tmp_path / f"moved-{number}")
        for later in checkpoints[len(checkpoints) - number + 1 :]:
            shutil.rmtree(moved / later.name)
        for file in ("adapter_model.safetensors", "trainer_state.json"):
            (moved / file).unlink()
        run_here([*flags, "--output_dir", moved])
        assert history(moved) == history(whole)
        assert (moved / "adapter_model.safetensors").read_bytes() == (whole / "adapter_model.safetensors").read_bytes()


def history(folder):
    """The losses that a run logged, each with its step."""
    logged = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [{key: entry[key] for key in entry if key == "step" or key.endswith("loss")} for entry in logged]


@pytest.mark.parametrize(
    ("written", "told"),
    [
        (
            "global_step2/zero_pp_rank_{}_mp_rank_00_optim_states.pt",
            "ZeRO's optimizer state, which only DeepSpeed reads",
        ),
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
    (checkpoint / "trainer_state.json").write_text('{"global_step": 2}')
    flags = [*TINY, *records, "--output_dir", tmp_path / "out", "--resume_from_checkpoint", True]
    assert main(["train", "finetune", *map(str, flags)]) == 2
    assert f"checkpoint-2: {told}" in capsys.readouterr().err
