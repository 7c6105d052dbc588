"""An output folder holds one run: it goes on, is finished, is refused to another, or is given up on request."""

import hashlib
import json
import resource
import shutil
import signal
import subprocess
import sys

import pytest
from processes import TINY, losses, write_records
from safetensors.torch import load_file, save_file

from llava_s2.cli import main

STEPS = ["--max_steps", 3, "--save_steps", 2, "--per_device_train_batch_size", 4]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of three steps with a checkpoint after the second, its folder and its flags but the folder."""
    folder = tmp_path_factory.mktemp("finished")
    flags = [*write_records(folder, lambda number: number % 3), *STEPS]
    assert main(["train", "finetune", *map(str, [*TINY, *flags, "--output_dir", folder / "out"])]) == 0
    return folder, flags


@pytest.fixture
def again(finished, tmp_path, capsys):
    """Starts the run's command again, with more flags, in a copy of its folder; gives status, output and error."""
    folder, flags = finished
    shutil.copytree(folder / "out", tmp_path / "out")

    def run(*more, stage="finetune", flags=flags):
        capsys.readouterr()
        status = main(["train", stage, *map(str, [*TINY, *flags, "--output_dir", tmp_path / "out", *more])])
        printed = capsys.readouterr()
        return status, printed.out, printed.err.splitlines()[-1] if printed.err else ""

    run.out = tmp_path / "out"
    return run


def checksum(folder):
    return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()


def test_a_finished_run_says_so(again):
    before = checksum(again.out)
    status, printed, _ = again()
    assert status == 0
    assert (
        "this run is finished (3 steps)" in printed and "Saved" not in printed and "--overwrite_output_dir" in printed
    )
    assert checksum(again.out) == before
    # A run that changes no number is the same one: other processes' shares of the batch, packing, saving.
    same = ["--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 2, "--packing", "True"]
    status, printed, _ = again(*same, "--save_steps", 1, "--logging_steps", 5)
    assert status == 0 and "is finished" in printed


def test_a_default_that_is_written_out_is_the_same_run(again):
    flags = ["--data_seed", 42, "--data_weights", 1, "--image_aspect_ratio", "pad", "--mm_projector_type", "mlp2x_gelu"]
    flags += ["--mm_vision_select_layer=-2", "--s2_resize_output_to_idx=-2"]
    flags += ["--s2_scales", "56, 112", "--optim_args", "", "--lr_scheduler_kwargs", "{}", "--gguf_file", ""]
    status, printed, error = again(*flags)
    assert status == 0 and "is finished" in printed, error


@pytest.mark.parametrize(
    ("stage", "flags", "told"),
    [
        ("finetune", ["--learning_rate", "1e-3"], "learning_rate (0.005 there, 0.001 here)"),
        ("finetune", ["--lora_alpha", 16], "lora_alpha (8 there, 16 here)"),
        ("finetune", ["--lora_r", 8], "lora_r (4 there, 8 here)"),
        ("finetune", ["--mm_projector_lr", "2e-3"], "mm_projector_lr"),
        ("finetune", ["--lora_enable", "False"], "trains (projector, LoRA on the language model there, projector, the"),
        ("finetune", ["--s2_scales", "56,112,168"], "s2_scales (56,112 there, 56,112,168 here)"),
        ("finetune", ["--max_steps", 6], "max_steps (3 there, 6 here)"),
        ("finetune", ["--max_steps", -1], "max_steps 3 there and num_train_epochs 1.0 here"),
        ("finetune", ["--per_device_train_batch_size", 8], "global batch (4 there, 8 here)"),
        ("finetune", ["--lr_scheduler_type", "linear"], "lr_scheduler_type"),
        ("finetune", ["--template", "llama_2"], "template"),
        ("finetune", ["--seed", 7], "seed (42 there, 7 here)"),
        ("finetune", ["--model_max_length", 300], "model_max_length (2048 there, 300 here)"),
        ("finetune", ["--eval_split", 0.1], "eval_split (None there, 0.1 here)"),
        ("pretrain", ["--template", "v1"], "stage (finetune there, pretrain here)"),
    ],
)
def test_another_run_is_refused(again, monkeypatch, stage, flags, told):
    monkeypatch.delattr("llava_s2.train.starting_model._load")  # to load weights would be a NameError
    before = checksum(again.out)
    for state in ("finished", "cut off"):
        if state == "cut off":
            (again.out / "adapter_model.safetensors").unlink()
        status, _, error = again(*flags, stage=stage)
        assert status == 2
        assert f"{again.out}: holds another run, which differs in " in error and told in error, error
        if state == "finished":
            assert checksum(again.out) == before


def test_changed_data_models_and_images_are_another_run(again, finished, tmp_path):
    folder, flags = finished
    data = tmp_path / "data.json"
    records = json.loads((folder / "data.json").read_text())
    data.write_text(json.dumps(records, indent=1))
    same = [*flags, "--data_path", data]
    assert again(flags=same)[0] == 2  # the same records, but not the same file
    shutil.copy(folder / "data.json", data)
    assert again(flags=same)[0] == 0  # moved
    text = data.read_text()
    data.write_text(text.replace("red", "pink", 1))
    assert "data (the content of data.json has changed)" in again(flags=same)[2]
    images = shutil.copytree(folder, tmp_path / "images", ignore=shutil.ignore_patterns("out"))
    assert again(*flags, "--image_folder", images)[0] == 0
    shutil.copy(images / "2.png", images / "76.png")  # any of them
    assert "images (" in again(*flags, "--image_folder", images)[2]
    llm = shutil.copytree(TINY[1], tmp_path / "vicuna-tiny")
    assert again("--model_name_or_path", llm)[0] == 0
    (llm / "model.safetensors").write_bytes((llm / "model.safetensors").read_bytes()[:-1] + b"\x01")
    assert "model (" in again("--model_name_or_path", llm)[2]


def test_overwriting_starts_anew(again):
    (again.out / "notes.txt").write_text("mine")
    status, printed, _ = again("--learning_rate", "1e-3", "--overwrite_output_dir", "True", "--save_steps", 3)
    assert status == 0 and "starts at step 0" in printed and "Saved" in printed
    assert (again.out / "notes.txt").exists() and not (again.out / "checkpoint-2").exists()
    assert json.loads((again.out / "run.json").read_text())["finished"] == 3
    assert again("--learning_rate", "1e-3")[0] == 0


def test_a_constant_rate_may_go_on_for_longer(finished, tmp_path, capsys):
    """Then more steps are those that a longer run would have made."""
    flags = [*finished[1], "--lr_scheduler_type", "constant", "--output_dir"]
    for steps, name in ((2, "a"), (4, "a"), (4, "b")):
        assert main(["train", "finetune", *map(str, [*TINY, *flags, tmp_path / name, "--max_steps", steps])]) == 0
    assert losses(tmp_path / "a") == losses(tmp_path / "b") and len(losses(tmp_path / "a")) == 4
    for flag, value in (("--max_steps", 3), ("--num_train_epochs", "0.1")):  # of 20 steps
        fewer = ["--max_steps", -1, flag, value]
        assert main(["train", "finetune", *map(str, [*TINY, *flags, tmp_path / "a", *fewer])]) == 2
        error = capsys.readouterr().err
        assert "gone" in error and f"further than {flag} {value}" in error


@pytest.mark.parametrize("missing", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_checkpoint_without_its_state_does_not_go_on(again, missing):
    """As ``--save_only_model`` leaves it."""
    for checkpoint in again.out.glob("checkpoint-*"):
        (checkpoint / missing).unlink()
    status, printed, _ = again()
    assert status == 0 and "is finished" in printed  # whoever deletes the large files of a finished run is told no more
    (again.out / "adapter_model.safetensors").unlink()
    status, _, error = again()
    assert status == 2
    assert "is not in it (--save_only_model leaves it out), so the run cannot go on" in error


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "optimizer.pt", "rng_state.pth", "tokenizer.json"])
def test_a_checkpoint_that_is_damaged_is_named(again, file):
    place = max(again.out.glob(f"checkpoint-*/{file}"))
    whole = place.read_bytes()
    place.write_bytes(whole[:-1])
    status, printed, _ = again()
    assert status == 0 and "is finished" in printed  # it need not go on
    (again.out / "adapter_model.safetensors").unlink()
    middle = len(whole) // 2
    for damaged in (whole[:-1], whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]):
        place.write_bytes(damaged)
        status, _, error = again()
        assert status == 2 and f"{place}: missing, damaged or cut off" in error and "delete this checkpoint" in error


def test_a_disk_that_becomes_full_leaves_the_checkpoint_before(again):
    """The limit on a file's size stands for the disk's end."""
    whole = checksum(again.out)
    shutil.rmtree(again.out / "checkpoint-3")
    (again.out / "adapter_model.safetensors").unlink()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        status, _, error = again()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert status == 2 and "could not be written" in error
    assert not (again.out / ".writing").exists()
    assert again()[0] == 0
    assert checksum(again.out) == whole


def test_a_checkpoint_that_lost_a_file(again):
    """As a shard of one of several processes."""
    place = max(again.out.glob("checkpoint-*/tokenizer.json"))
    place.unlink()
    (again.out / "adapter_model.safetensors").unlink()
    assert f"{place}: missing, damaged or cut off" in again()[2]


def test_a_base_that_was_replaced_is_made_again(again):
    whole = checksum(again.out)
    base = again.out / "base" / "model.safetensors"
    save_file({name: tensor * 2 for name, tensor in load_file(base).items()}, base, {"format": "pt"})
    shutil.rmtree(again.out / "checkpoint-3")
    (again.out / "adapter_model.safetensors").unlink()
    (again.out / ".saving").mkdir()  # of a process killed while it wrote the result
    assert again()[0] == 0
    assert checksum(again.out) == whole
    assert not (again.out / ".saving").exists()


def test_a_best_checkpoint_that_was_lost_is_named(finished, tmp_path, capsys):
    """At rate 0 no evaluation is better than the first one."""
    flags = [*finished[1], "--output_dir", tmp_path / "out", "--eval_split", 0.1, "--load_best_model_at_end", "True"]
    flags += ["--learning_rate", 0, "--mm_projector_lr", 0, "--save_steps", 1]
    command = ["train", "finetune", *map(str, [*TINY, *flags])]
    assert main(command) == 0
    shutil.rmtree(tmp_path / "out" / "checkpoint-1")
    assert main(command) == 0  # finished, it needs none
    (tmp_path / "out" / "adapter_model.safetensors").unlink()
    assert main(command) == 2
    assert "step 1 evaluated best, and checkpoint-1 is not in" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["[]", "{}"])
def test_a_record_that_is_none_is_refused(again, content):
    (again.out / "run.json").write_text(content)
    status, _, error = again()
    assert status == 2 and "run.json: not the record of a run; --overwrite_output_dir starts anew" in error


def test_an_output_folder_that_is_a_file(finished, tmp_path, capsys):
    (tmp_path / "x").touch()
    assert main(["train", "finetune", *map(str, [*TINY, *finished[1], "--output_dir", tmp_path / "x"])]) == 2
    assert f"--output_dir {tmp_path / 'x'}: cannot be made" in capsys.readouterr().err


def test_a_folder_with_what_no_run_recorded(again):
    for path in [again.out / "run.json", *again.out.glob("*/run.json")]:
        path.unlink()
    status, _, error = again()
    assert status == 2 and "holds checkpoints without run.json" in error
    assert "--resume_from_checkpoint True trusts it" in error
    for checkpoint in again.out.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    assert "holds a model without run.json" in again()[2]


def test_what_is_read_is_not_overwritten(finished, tmp_path, capsys):
    model = shutil.copytree(TINY[1], tmp_path / "vicuna")
    flags = [*TINY, *finished[1], "--model_name_or_path", model, "--output_dir", model, "--overwrite_output_dir"]
    assert main(["train", "finetune", *map(str, flags)]) == 2
    assert "would be overwritten by the result of this run" in capsys.readouterr().err
    assert (model / "model.safetensors").exists()


def test_two_processes_on_one_folder(again):
    """A lock that dies with its process: here one that holds it, says so, and waits to be told to end."""
    hold = "import fcntl, sys; f = open(sys.argv[1], 'w'); f.write('process 7 on elsewhere'); f.flush()"
    hold += "; fcntl.lockf(f, fcntl.LOCK_EX); print('held', flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", hold, again.out / ".run.lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "held\n"
    status, _, error = again()
    assert status == 2 and f"{again.out}: process 7 on elsewhere is training into it" in error
    other.communicate("\n", timeout=20)
    assert again()[0] == 0
    assert not (again.out / ".run.lock").exists()
