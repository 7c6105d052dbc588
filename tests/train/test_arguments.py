"""Flags, YAML files and LLaVA's own spellings."""

import shlex

import pytest

from llava_s2.errors import InputError
from llava_s2.train.arguments import parse_flags
from llava_s2.train.parts import TrainableModules

NEEDED = ["--model_name_or_path", "m", "--data_path", "d", "--output_dir", "o", "--use_cpu", "True"]


def test_the_recipe_of_each_stage_is_the_default():
    for stage, rate in (("pretrain", 1e-3), ("finetune", 2e-4)):
        own, training = parse_flags(stage, NEEDED)
        assert (training.learning_rate, training.num_train_epochs, training.warmup_steps) == (rate, 1, 0.03)
        assert training.lr_scheduler_type == "cosine"
        assert (own.lora_r, own.lora_alpha, own.model_max_length, own.mm_projector_lr) == (128, 256, 2048, None)


def test_a_command_line_of_llavas_scripts():
    own, training = parse_flags(
        "finetune",
        NEEDED
        + shlex.split(
            "--lora_enable True --lora_r 64 --lora_alpha=16 --mm_projector_lr 2e-5 --version v1 "
            "--vision_tower openai/clip-vit-large-patch14-336 --mm_projector_type mlp2x_gelu "
            "--mm_vision_select_layer -2 --mm_use_im_start_end False --mm_use_im_patch_token False "
            "--image_aspect_ratio pad --group_by_modality_length True --s2 True --s2_scales 336,672,1008 "
            "--evaluation_strategy no --save_steps 50000 --warmup_ratio=0.1 --lazy_preprocess True "
            "--model_max_length 512 --gradient_checkpointing True --seed 7 "
        ),
    )
    assert (own.lora_r, own.lora_alpha, own.mm_projector_lr, own.template) == (64, 16, 2e-5, "vicuna_v1")
    assert (own.scales, own.mm_vision_select_layer, own.model_max_length) == ([336, 672, 1008], -2, 512)
    assert own.group_by_modality_length
    assert (training.eval_strategy, training.warmup_steps, training.seed) == ("no", 0.1, 7)


@pytest.mark.parametrize(
    ("flags", "steps"),
    [("--warmup_ratio 0.1 --warmup_steps 0", 0.1), ("--warmup_steps=5 --warmup_ratio=0.1", 5), ("--warmup_ratio 0", 0)],
)
def test_steps_of_warm_up_count_before_a_ratio_if_there_are_any(flags, steps):
    assert parse_flags("finetune", [*NEEDED, *flags.split()])[1].warmup_steps == steps


def test_yaml_and_the_command_line_over_it(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "model_name_or_path: m\ndata_path: d\noutput_dir: o\nuse_cpu: true\ns2_scales: [56, 112]\n"
        "learning_rate: 5e-5\nlora_r: 8\nversion: llava_llama_2\nmm_projector_lr: null\n"
        "group_by_modality_length: true\nlr_scheduler_kwargs: {num_cycles: 2}\nseed: 3\n"
    )
    own, training = parse_flags("finetune", [str(path), "--lora_r", "16", "--seed=4"])
    assert (own.model_name_or_path, own.lora_r, own.template, own.scales) == ("m", 16, "llama_2", [56, 112])
    assert own.group_by_modality_length
    assert own.mm_projector_lr is None
    assert (training.learning_rate, training.seed, training.lr_scheduler_kwargs) == (5e-5, 4, {"num_cycles": 2})


def test_a_misspelt_flag():
    for flags in (["--lora_rank", "4"], ["--learning_rat", "1"]):
        with pytest.raises(InputError, match=f"no such flag: {flags[0]}"):
            parse_flags("finetune", NEEDED + flags)


@pytest.mark.parametrize(
    ("stage", "flags", "trained"),
    [
        ("pretrain", "", "projector"),
        ("pretrain", "--tune_mm_mlp_adapter True --unfreeze_mm_vision_tower True", "projector, vision tower"),
        ("pretrain", "--lora_enable True", "projector, LoRA on the language model"),
        ("finetune", "", "projector, LoRA on the language model"),
        ("finetune", "--tune_mm_mlp_adapter True", "projector"),
        ("finetune", "--lora_enable False", "projector, the whole language model"),
        ("finetune", "--freeze_mm_mlp_adapter True", "LoRA on the language model"),
        (
            "finetune",
            "--lora_enable False --freeze_mm_mlp_adapter True --unfreeze_mm_vision_tower --bits 16",
            "the whole language model, vision tower",
        ),
    ],
)
def test_which_parts_the_flags_train(stage, flags, trained):
    own, _ = parse_flags(stage, NEEDED + shlex.split(flags))
    assert TrainableModules.of(stage, own).describe() == trained


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--tune_mm_mlp_adapter True --lora_enable True", "leave --lora_enable out"),
        ("--tune_mm_mlp_adapter True --freeze_mm_mlp_adapter", "leaves nothing"),
        ("--lora_enable False --bits 4 --dry_run", "--bits 4: quantized weights do not learn"),
        ("--bits 5", "--bits 5: must be 4, 8 or 16"),
        ("--mm_vision_tower_lr 1e-6", "add --unfreeze_mm_vision_tower"),
        ("--eval_task vstar", "--eval_task and --eval_data belong together"),
    ],
)
def test_flags_that_contradict_each_other(flags, told):
    with pytest.raises(InputError, match=told):
        TrainableModules.of("finetune", parse_flags("finetune", NEEDED + shlex.split(flags))[0])
