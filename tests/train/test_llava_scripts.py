"""The command lines of LLaVA's own training scripts, and what is left out in them."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from processes import COLOURS, GOLDEN, ROOT, losses, talk

from llava_s2 import load_pretrained
from llava_s2.cli import main
from llava_s2.errors import InputError
from llava_s2.model.templates import TEMPLATES
from llava_s2.train.arguments import left_out, parse_flags
from llava_s2.train.llava_flags import with_stage
from llava_s2.train.parts import TrainableModules

# The flags of scripts/v1_5/*.sh but for what a CPU has not (--bf16 True, --tf32 True), wandb, and --deepspeed, which
# has a test of its own.
COMMON = (
    "--vision_tower openai/clip-vit-large-patch14-336 --mm_projector_type mlp2x_gelu --mm_vision_select_layer -2 "
    "--mm_use_im_start_end False --mm_use_im_patch_token False --num_train_epochs 1 --per_device_eval_batch_size 4 "
    "--gradient_accumulation_steps 1 --evaluation_strategy no --save_strategy steps --save_total_limit 1 "
    "--weight_decay 0. --warmup_ratio 0.03 --lr_scheduler_type cosine --logging_steps 1 --model_max_length 2048 "
    "--gradient_checkpointing True --dataloader_num_workers 4 --lazy_preprocess True --report_to none "
)
PRETRAIN = (
    "--version plain --tune_mm_mlp_adapter True --learning_rate 1e-3 "
    "--data_path ./playground/data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json --save_steps 24000 "
    "--image_folder ./playground/data/LLaVA-Pretrain/images --per_device_train_batch_size 32 "
)
FINETUNE = (
    "--version v1 --data_path ./playground/data/llava_v1_5_mix665k.json "
    "--image_folder ./playground/data --image_aspect_ratio pad --group_by_modality_length True --save_steps 50000 "
    "--per_device_train_batch_size 16 "
)
VICUNA = "--model_name_or_path lmsys/vicuna-13b-v1.5 "
LLAVA = "--model_name_or_path liuhaotian/llava-v1.5-13b "
STAGE_1 = "--pretrain_mm_mlp_adapter ./checkpoints/llava-v1.5-13b-pretrain/mm_projector.bin "
LORA = "--lora_enable True --lora_r 128 --lora_alpha 256 --mm_projector_lr 2e-5 --learning_rate 2e-4 "
SCRIPTS = {  # name -> flags, folder that it writes, what it trains in LLaVA
    "pretrain": (VICUNA + PRETRAIN, "llava-v1.5-13b-pretrain", "projector"),
    "finetune": (
        f"{VICUNA}{STAGE_1}{FINETUNE}--learning_rate 2e-5 ",
        "llava-v1.5-13b",
        "projector, the whole language model",
    ),
    "finetune_lora": (
        f"{LORA}{VICUNA}{STAGE_1}{FINETUNE}",
        "llava-v1.5-13b-lora",
        "projector, LoRA on the language model",
    ),
    "finetune_task": (
        f"{LLAVA}{FINETUNE}--learning_rate 2e-5 ",
        "llava-v1.5-13b-task",
        "projector, the whole language model",
    ),
    "finetune_task_lora": (
        f"{LORA}{LLAVA}{FINETUNE}",
        "llava-v1.5-13b-task-lora",
        "projector, LoRA on the language model",
    ),
}


def words(name):
    """What DeepSpeed's launcher hands to the program in that script."""
    flags, folder, _ = SCRIPTS[name]
    return ["--local_rank=0", *shlex.split(f"{flags}{COMMON} --output_dir ./checkpoints/{folder}")]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_trains_what_it_trains_in_llava(name):
    stage, *rest = with_stage(words(name))
    assert stage == ("pretrain" if name == "pretrain" else "finetune")
    recipe, training = parse_flags(stage, rest)
    assert TrainableModules.of(stage, recipe).describe() == SCRIPTS[name][2]
    assert (recipe.image_aspect_ratio, recipe.s2_scales) == ("square" if name == "pretrain" else "pad", None)
    assert (training.warmup_steps, training.eval_strategy) == (0.03, "no")
    lora = TrainableModules.of(stage, recipe).lora
    assert left_out(stage, rest, recipe, training, lora) is None


@pytest.fixture(scope="module")
def llava_repository(tmp_path_factory):
    """A folder with what LLaVA's scripts name: a tiny Vicuna, CLIP and LLaVA, the two data files, DeepSpeed's configs.

    The tiny LLaVA has S2 scales, which a script finds in it.
    """
    folder = tmp_path_factory.mktemp("LLaVA")
    for source, place in {
        GOLDEN / "vicuna-tiny": "lmsys/vicuna-13b-v1.5",
        GOLDEN / "clip-tiny": "openai/clip-vit-large-patch14-336",
        GOLDEN / "llava-tiny-s2": "liuhaotian/llava-v1.5-13b",
        ROOT / "scripts" / "train": "scripts",
    }.items():
        shutil.copytree(source, folder / place)
    data = folder / "playground" / "data"
    (data / "LLaVA-Pretrain" / "images").mkdir(parents=True)
    captions, mix = [], []
    for number in range(32):
        colour = list(COLOURS)[number % 4]
        Image.new("RGB", (40 + number, 30), COLOURS[colour]).save(data / f"LLaVA-Pretrain/images/{number}.png")
        captions.append({"image": f"{number}.png", "conversations": talk("Describe.\n<image>", f"a {colour} image")})
        if number % 2:
            mix.append(
                {"image": f"LLaVA-Pretrain/images/{number}.png", "conversations": talk("<image>\nColour?", colour)}
            )
        else:
            mix.append({"conversations": talk("Name a colour.", colour, "Sure?", "Yes. " * (1 + number % 7))})
    (data / "LLaVA-Pretrain/blip_laion_cc_sbu_558k.json").write_text(json.dumps(captions))
    (data / "llava_v1_5_mix665k.json").write_text(json.dumps(mix))
    return folder


def test_the_scripts_run_one_after_the_other(llava_repository, monkeypatch):
    """Without DeepSpeed; the next test starts one of them with it."""
    monkeypatch.chdir(llava_repository)
    first = {}
    for name, (_, folder, _) in SCRIPTS.items():
        assert main(["train", *words(name), "--dataloader_num_workers", "0"]) == 0
        first[name] = losses(f"checkpoints/{folder}")[0]
        model, processor = load_pretrained(f"checkpoints/{folder}")
        template = TEMPLATES["vicuna_v1"]
        assert processor.chat_template == template or processor.tokenizer.chat_template == template
        assert model.config.vision_config.scales == ([56] if "task" not in name else [56, 112, 168])
    stage_1 = torch.load("checkpoints/llava-v1.5-13b-pretrain/mm_projector.bin", weights_only=True)
    assert {key: list(value.shape) for key, value in stage_1.items()} == {
        "model.mm_projector.0.weight": [32, 32],
        "model.mm_projector.0.bias": [32],
        "model.mm_projector.2.weight": [32, 32],
        "model.mm_projector.2.bias": [32],
    }
    assert first["finetune"] == pytest.approx(first["finetune_lora"], abs=1e-4)  # one projector, of stage 1
    assert first["finetune_task"] == pytest.approx(first["finetune_task_lora"], abs=1e-3)


def test_a_script_runs_with_deepspeed(llava_repository):
    script = llava_repository / "pretrain.sh"
    flags = " ".join(words("pretrain")[1:]).replace("13b-pretrain", "13b-deepspeed")
    script.write_text(
        f"deepspeed --module llava_s2.train --deepspeed ./scripts/zero2.json {flags} --dataloader_num_workers 0\n"
    )
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PATH": path}
    done = subprocess.run(
        ["bash", script], cwd=llava_repository, env=environment, text=True, capture_output=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (llava_repository / "checkpoints/llava-v1.5-13b-deepspeed/mm_projector.bin").is_file()


def test_what_a_script_leaves_out_is_llavas():
    flags = shlex.split("--version v1 --model_name_or_path m --data_path d --output_dir o --mm_use_im_start_end False")
    recipe, training = parse_flags("finetune", flags)
    assert (recipe.lora_enable, recipe.lora_r, recipe.lora_alpha, recipe.model_max_length) == (False, 64, 16, 512)
    assert (training.learning_rate, training.num_train_epochs, training.lr_scheduler_type) == (5e-5, 3, "linear")


def test_what_another_command_line_leaves_out_is_told():
    flags = shlex.split("--model_name_or_path m --data_path d --output_dir o --vision_tower t --lora_r 8")
    recipe, training = parse_flags("finetune", flags)
    told = left_out("finetune", flags, recipe, training, True)
    assert "lora_enable True (False)" in told and "lora_alpha 256 (16)" in told and "image_aspect_ratio pad" in told
    assert "lora_r" not in told


NEEDED = "--model_name_or_path m --data_path d --output_dir o "


def test_flags_at_their_default_are_accepted():
    flags = (
        "--freeze_backbone False --lora_bias none --mm_vision_select_feature patch --mm_patch_merge_type flat "
        "--lazy_preprocess False --is_multimodal True --save_safetensors True --lora_weight_path= "
        "--group_by_length True"
    )
    _, training = parse_flags("finetune", shlex.split(NEEDED + flags))
    assert training.train_sampling_strategy == "group_by_length"


def test_the_scales_of_s2_are_three_where_a_script_leaves_them_out():
    start = [*shlex.split(VICUNA + COMMON + FINETUNE), "--output_dir", "x"]
    for flags, scales in (
        (["--s2", "True"], "336,672,1008"),
        (["--s2", "True", "--s2_scales", "336,672"], "336,672"),
        (["--s2=False"], None),
    ):
        assert parse_flags("finetune", start + flags)[0].s2_scales == scales
    with pytest.raises(InputError, match="--s2 False has a tower see its own scale alone"):
        parse_flags("finetune", [*start, "--s2", "False", "--s2_scales", "336,672"])


def test_all_problems_are_told_at_once():
    with pytest.raises(InputError) as told:
        parse_flags("finetune", shlex.split(NEEDED + "--bf16 True --tf32 True --fp16 False --report_to none_such"))
    assert "--bf16 True, --tf32 True: torch sees no GPU" in str(told.value)
    assert "--report_to none_such: none_such is not installed" in str(told.value)
    flags = "--freeze_backbone True --lora_bias all --eval_strategy steps"
    with pytest.raises(InputError) as told:
        parse_flags("finetune", shlex.split(NEEDED + flags))
    for part in ("--freeze_backbone True: only false", "--lora_bias all: only none", "--eval_strategy steps: there is"):
        assert part in str(told.value)


def test_yaml_takes_no_for_a_strategy(tmp_path):
    (tmp_path / "r.yaml").write_text("model_name_or_path: m\ndata_path: d\noutput_dir: o\nsave_strategy: no\n")
    assert parse_flags("finetune", [str(tmp_path / "r.yaml")])[1].save_strategy == "no"
