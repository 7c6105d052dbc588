"""Two processes against one: the same losses whatever shards the model, and with text alone on one of them."""

import json
import os
import subprocess
import sys

import pytest
import torch
from processes import ROOT, TINY, free_port, losses, run, run_here, write_records
from safetensors.torch import load_file

from llava_s2 import load_pretrained

SCRIPTS = ROOT / "scripts" / "train"
BACKENDS = {
    "ddp": [],
    "zero2": ["--deepspeed", SCRIPTS / "zero2.json"],
    "zero3": ["--deepspeed", SCRIPTS / "zero3.json"],
    "fsdp2": ["--fsdp", "--fsdp_config", SCRIPTS / "fsdp2.json"],
}
SHARDS = {"zero3": "global_step4/zero_pp_rank_1_*_optim_states.pt", "fsdp2": "pytorch_model_fsdp_0/__1_*.distcp"}
STEPS = ["--max_steps", 20, "--save_strategy", "no", "--lora_dropout", 0, "--weight_decay", "0.1"]
EVALUATED = ["--eval_split", 0.1, "--eval_strategy", "steps", "--eval_steps", 8]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Records two thirds of which have an image, drawn in any order, and one process's run over them, evaluated."""
    folder = tmp_path_factory.mktemp("mixed")
    flags = [*write_records(folder, lambda number: number % 3), *STEPS]
    run_here([*flags, *EVALUATED, "--per_device_train_batch_size", 4, "--output_dir", folder / "one"])
    return folder, flags


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_processes_train_as_one(mixed, backend):
    folder, flags = mixed
    flags = [*flags, *EVALUATED, "--per_device_train_batch_size", 2, *BACKENDS[backend]]
    run([*flags, "--output_dir", folder / backend], processes=2)
    one, two = losses(folder / "one"), losses(folder / backend)
    assert len(one) == 20 and min(one) < one[0] - 1
    assert two == pytest.approx(one, abs=1e-4)
    evaluated = losses(folder / "one", "eval_loss")
    assert len(evaluated) == 3  # steps 8, 16 and the last
    assert losses(folder / backend, "eval_loss") == pytest.approx(evaluated, abs=1e-4)
    files = [load_file(folder / name / "adapter_model.safetensors") for name in ("one", backend)]
    assert files[0].keys() == files[1].keys()
    assert all(torch.allclose(files[0][name], files[1][name], atol=1e-3) for name in files[0])
    load_pretrained(folder / backend)


@pytest.fixture(scope="module")
def epoch(mixed):
    """One process's run over an epoch of 80 records in batches of 6, the last of 2: padded."""
    folder, flags = mixed
    flags = [*flags, "--max_steps", -1, "--num_train_epochs", 1]
    run_here([*flags, "--per_device_train_batch_size", 6, "--output_dir", folder / "epoch"])
    return folder, flags


@pytest.mark.parametrize("backend", ["ddp", "zero3"])
def test_an_epoch_packed_on_two_processes_is_one_padded_on_one(epoch, backend):
    """The second process has none of the last batch, and still takes part in its step. With ZeRO-3 each has computed
    half of the tower's features ahead."""
    folder, flags = epoch
    flags = [*flags, "--per_device_train_batch_size", 3, "--packing", "True", *BACKENDS[backend]]
    flags += ["--cache_tower_features", folder / "features"] if backend == "zero3" else []
    run([*flags, "--output_dir", folder / f"epoch-{backend}"], processes=2)
    one = losses(folder / "epoch")
    assert len(one) == 14
    assert losses(folder / f"epoch-{backend}") == pytest.approx(one, abs=1e-4)


@pytest.fixture(scope="module")
def apart(tmp_path_factory):
    """In order: two records with images for the first process, two without for the second, and so on."""
    folder = tmp_path_factory.mktemp("apart")
    flags = [*write_records(folder, lambda number: number % 4 < 2), *STEPS, "--max_steps", 8]
    flags += ["--train_sampling_strategy", "sequential"]
    run_here([*flags, "--per_device_train_batch_size", 4, "--output_dir", folder / "one"])
    return folder, flags


@pytest.mark.parametrize("backend", ["zero3", "fsdp2"])
def test_a_process_that_never_sees_an_image_does_not_hang_the_other(apart, backend):
    folder, flags = apart
    flags = [*flags, "--per_device_train_batch_size", 2, *BACKENDS[backend]]
    run([*flags, "--output_dir", folder / backend], processes=2)
    assert losses(folder / backend) == pytest.approx(losses(folder / "one"), abs=1e-4)


def test_the_whole_language_model_in_shards(mixed):
    """Its shards come together on saving, into a checkpoint that loads by itself."""
    folder, flags = mixed
    flags = [*flags, "--lora_enable", "False", "--max_steps", 4]
    run_here([*flags, "--per_device_train_batch_size", 4, "--output_dir", folder / "full-one"])
    one = load_pretrained(folder / "full-one", dtype="float32")[0].state_dict()
    for backend in ("zero3", "fsdp2"):
        out = folder / f"full-{backend}"
        more = ["--per_device_train_batch_size", 2, *BACKENDS[backend], "--save_strategy", "steps", "--save_steps", 4]
        run([*flags, *more, "--output_dir", out], processes=2)
        assert any((out / "checkpoint-4").glob(SHARDS[backend]))
        assert losses(out) == pytest.approx(losses(folder / "full-one"), abs=1e-4)
        assert json.loads((out / "config.json").read_text())["model_type"] == "llava"
        other = load_pretrained(out, dtype="float32")[0].state_dict()
        assert one.keys() == other.keys()
        assert all(torch.allclose(one[name], other[name], atol=1e-3) for name in one)


def test_a_deepspeed_config_that_contradicts_the_flags_or_the_checkpoint(tmp_path):
    """One process for all of them, as a launcher starts it."""
    config = json.loads((SCRIPTS / "zero2.json").read_text())
    cases = {
        "optimizer": (
            {"type": "AdamW", "params": {"lr": "auto"}},
            'its section "optimizer" would take the place of --o',
        ),
        "scheduler": ({"type": "WarmupLR", "params": {}}, 'its section "scheduler" would take the place of --lr_sched'),
        "train_micro_batch_size_per_gpu": (9, "train_micro_batch_size_per_gpu=9, but the flags say per_device_train_b"),
    }
    for name, (value, _) in cases.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(config | {name: value}))
    (tmp_path / "broken.json").write_text("{")
    shards = tmp_path / "out" / "checkpoint-2" / "global_step2"
    shards.mkdir(parents=True)
    for kind in ("model", "optim"):
        (shards / f"zero_pp_rank_0_mp_rank_00_{kind}_states.pt").touch()
    (shards.parent / "trainer_state.json").write_text('{"global_step": 2}')
    flags = [*TINY, *write_records(tmp_path, lambda number: False), "--output_dir", tmp_path / "out"]
    flags += ["--resume_from_checkpoint", "True", "--deepspeed"]
    program = "import sys; from llava_s2.cli import main\n"
    program += "for name in sys.argv[1].split(','): main(['train', 'finetune', *sys.argv[2:], name])"
    names = [str(tmp_path / f"{name}.json") for name in [*cases, "broken"]] + [str(SCRIPTS / "zero2.json")]
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    command = [sys.executable, "-c", program, ",".join(names), *map(str, flags)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    told = [line for line in done.stderr.splitlines() if "error:" in line]
    assert len(told) == 5 and "broken.json: not valid JSON" in told[3]
    assert "checkpoint-2: was written under ZeRO-3; go on with such a config" in told[4]
    for line, (name, (_, words)) in zip(told, cases.items(), strict=False):
        assert f"{name}.json: {words}" in line
