"""``--dry_run`` on LLaVA-1.5-7B's shapes, and every recipe of scripts/train."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import GOLDEN, ROOT, free_port, write_records
from transformers import CLIPVisionConfig, LlamaConfig

from llava_s2.cli import main

RECIPES = ["pretrain", "finetune_lora", "finetune_qlora", "finetune_full", "finetune_task_lora"]


@pytest.fixture(scope="module")
def vicuna(tmp_path_factory):
    """Configs of Vicuna-7B and CLIP-L/14-336, with no weights: a file of none stands for them."""
    folder = tmp_path_factory.mktemp("7b")
    LlamaConfig().save_pretrained(folder / "llm")
    (folder / "llm" / "model.safetensors").touch()
    clip = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    CLIPVisionConfig(**clip, image_size=336, patch_size=14).save_pretrained(folder / "clip")
    data = write_records(folder, lambda number: number % 3)
    start = ["--model_name_or_path", folder / "llm", "--vision_tower", folder / "clip", "--s2_scales", "336,672,1008"]
    return [*start, *data, "--output_dir", folder / "out", "--use_cpu", "True", "--bf16", "True"]


PROJECTOR = (3072 * 4096 + 4096) + (4096 * 4096 + 4096)
LORA = 32 * 128 * (4 * (4096 + 4096) + 3 * (4096 + 11008))
LAYERS = 32 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096) + 4096 + 32000 * 4096


@pytest.mark.parametrize(
    ("stage", "flags", "counts"),
    [
        ("pretrain", ["--template", "v1"], {"projector": (PROJECTOR, PROJECTOR), "language model": (LAYERS, 0)}),
        ("finetune", [], {"projector": (PROJECTOR, PROJECTOR), "LoRA": (LORA, LORA), "language model": (LAYERS, 0)}),
        ("finetune", ["--lora_enable", "False"], {"language model": (LAYERS, LAYERS)}),
    ],
)
def test_what_would_learn_of_a_7b_model(vicuna, capsys, stage, flags, counts):
    status = main(["train", stage, *map(str, [*vicuna, *flags]), "--dry-run", "--per_device_train_batch_size", "16"])
    assert status == 0
    lines = capsys.readouterr().out.splitlines()
    for name, (total, learning) in counts.items():
        (line,) = [line for line in lines if line.startswith(f"  {name} ")]
        assert f" {total:,} parameters, " in line and line.endswith(f" {learning:,} trainable")
    assert any(line.startswith("tokens an image: 576 of images of 1008 x 1008") for line in lines)
    assert any(line.startswith("steps: 5 of 16 records") for line in lines)
    assert not Path(vicuna[-5]).joinpath("out").exists()


def memory(capsys, *flags):
    assert main(["train", "finetune", *map(str, flags), "--dry_run"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("memory a GPU")]
    return float(line.split()[-2])


def test_a_machine_without_a_gpu_tells_of_a_run_on_some(vicuna, capsys):
    """LLaVA's flags as they are, and the two rows of the image markers among what learns."""
    flags = [flag for flag in vicuna if flag not in ("--use_cpu", "--bf16", "True")]
    flags += ["--bf16", "True", "--tf32", "True", "--bits", "4", "--mm_use_im_start_end", "True"]
    assert main(["train", "finetune", *map(str, flags), "--dry-run", "--dry_run_gpus", "8"]) == 0
    out = capsys.readouterr().out
    assert f"{2 * 4096:,} trainable" in next(line for line in out.splitlines() if line.startswith("  embeddings"))
    assert "(8 processes x 8 x 1 accumulated)" in out


def test_memory_of_a_7b_model(vicuna, capsys):
    """7B in 16 bits are 13.1 GiB; the whole model with its gradients and AdamW sixteen bytes a parameter."""
    one = [*vicuna, "--per_device_train_batch_size", 1, "--gradient_checkpointing", "True"]
    lora, four_bits = memory(capsys, *one), memory(capsys, *one, "--bits", 4)
    assert 13.1 < lora < 22
    assert 8 < lora - four_bits < 9.5  # three quarters of what the layers' 6.6e9 weights take
    whole = memory(capsys, *one, "--lora_enable", "False")
    assert whole > 16 * (LAYERS + 32000 * 4096) / 2**30
    assert memory(capsys, *one, "--lora_enable", "False", "--dry_run_gpus", 8) == whole  # DDP holds all of it
    kept = memory(capsys, *vicuna, "--per_device_train_batch_size", 16)
    assert kept > memory(capsys, *vicuna, "--per_device_train_batch_size", 16, "--gradient_checkpointing", "True") + 5


def test_every_recipe_of_the_scripts_parses(tmp_path):
    """The flags of every script, in one process as torchrun would start it, on tiny parts; only a dry run."""
    tiny = ["--model_name_or_path", GOLDEN / "vicuna-tiny", "--vision_tower", GOLDEN / "clip-tiny", "--s2_scales"]
    tiny += ["56,112,168", *write_records(tmp_path, lambda number: True), "--use_cpu", "True", "--dry_run"]
    runs = []
    for recipe in RECIPES:
        more = [*tiny, "--output_dir", tmp_path / recipe]
        more += [] if recipe == "pretrain" else ["--pretrain_mm_mlp_adapter", GOLDEN / "mm_projector.bin"]
        script = ["bash", ROOT / "scripts" / "train" / f"{recipe}.sh", *more]
        shown = subprocess.run(
            script, env=os.environ | {"TORCHRUN": r"printf %s\n"}, cwd=ROOT, capture_output=True, text=True, check=True
        )
        runs.append(["train", *shown.stdout.split("llava_s2.train\n")[1].splitlines()])
    code = "import json, sys; from llava_s2.cli import main; sys.exit(max(map(main, json.loads(sys.argv[1]))))"
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    environment = os.environ | alone | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(runs)], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = [line.removeprefix("trains: ") for line in done.stdout.splitlines() if line.startswith("trains: ")]
    lora = "projector, LoRA on the language model"
    assert told == ["projector", lora, lora, "projector, the whole language model", lora]
