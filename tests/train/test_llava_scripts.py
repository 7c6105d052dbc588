"""The command lines of LLaVA's own training scripts, and what is left out in them."""

import shlex

import pytest

from llava_s2.errors import InputError
from llava_s2.train.arguments import left_out, parse_flags
from llava_s2.train.llava_flags import with_stage
from llava_s2.train.parts import TrainedParts

# The flags of scripts/v1_5/*.sh, without the GPU's (bf16, tf32, deepspeed) and wandb.
COMMON = (
    "--model_name_or_path m --data_path d --image_folder i --vision_tower t --mm_projector_type mlp2x_gelu "
    "--mm_vision_select_layer -2 --mm_use_im_start_end False --mm_use_im_patch_token False --output_dir o "
    "--num_train_epochs 1 --per_device_eval_batch_size 4 --gradient_accumulation_steps 1 --evaluation_strategy no "
    "--save_strategy steps --save_total_limit 1 --weight_decay 0. --warmup_ratio 0.03 --lr_scheduler_type cosine "
    "--logging_steps 1 --model_max_length 2048 --gradient_checkpointing True --dataloader_num_workers 4 "
    "--lazy_preprocess True --report_to none "
)
LATER = "--image_aspect_ratio pad --group_by_modality_length True --save_steps 50000 --per_device_train_batch_size 16 "
LORA = "--lora_enable True --lora_r 128 --lora_alpha 256 --mm_projector_lr 2e-5 --learning_rate 2e-4 "
SCRIPTS = {
    "pretrain": ("--version plain --tune_mm_mlp_adapter True --learning_rate 1e-3 --save_steps 24000", "projector"),
    "finetune": (
        f"--version v1 --pretrain_mm_mlp_adapter p/mm_projector.bin --learning_rate 2e-5 {LATER}",
        "projector, the whole language model",
    ),
    "finetune_lora": (f"--version v1 {LORA}{LATER}", "projector, LoRA on the language model"),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_trains_what_it_trains_in_llava(name):
    flags, trained = SCRIPTS[name]
    stage, *rest = with_stage(["--local_rank=0", *shlex.split(flags + " " + COMMON)])
    assert stage == ("pretrain" if name == "pretrain" else "finetune")
    recipe, training = parse_flags(stage, rest)
    assert TrainedParts.of(stage, recipe).describe() == trained
    assert (recipe.image_aspect_ratio, recipe.s2_scales) == ("square" if name == "pretrain" else "pad", None)
    assert (training.warmup_steps, training.eval_strategy) == (0.03, "no")
    lora = TrainedParts.of(stage, recipe).lora
    assert left_out(stage, rest, recipe, training, lora) is None


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
