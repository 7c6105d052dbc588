"""Wrong input on the command line: exit code 2 and one line that names it, before any weight is loaded."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from llava_s2.cli import main
from llava_s2.data import training_records
from llava_s2.formats.create import create_native
from llava_s2.model import assemble
from llava_s2.train import starting_model
from llava_s2.train.trainer import LlavaTrainer

GOLDEN = Path(__file__).parents[1] / "golden" / "llava_tiny"
START = ["--model_name_or_path", GOLDEN / "vicuna-tiny", "--vision_tower", GOLDEN / "clip-tiny"]


@pytest.fixture
def folder(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    for name in ("good", "cut"):
        Image.fromarray(noise).save(tmp_path / f"{name}.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:2500])
    (tmp_path / "text.png").write_text("no picture")
    return tmp_path


def talk(question="<image>", answer="a"):
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


GOOD = {"id": "fine", "image": "good.png", "conversations": talk()}


def fails(capsys, *flags):
    """Runs the command and returns its one line of error."""
    status = main(["train", *map(str, flags)])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("llava-s2: error: ")]
    assert status == 2
    assert len(lines) == 1
    return lines[0].removeprefix("llava-s2: error: ")


def fails_early(capsys, monkeypatch, *flags):
    for loader in ("assemble", "load_pretrained"):
        monkeypatch.delattr(starting_model, loader)  # to load weights would be a NameError
    return fails(capsys, *flags)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"image": "none.png", "conversations": talk()}, "none.png: no such image file"),
        ({"image": "cut.png", "conversations": talk()}, "cut.png: truncated or damaged image"),
        ({"image": "text.png", "conversations": talk()}, "text.png: not an image"),
        ({"image": "good.png", "conversations": talk("<image><image>")}, '2 <image> in its turns, but 1 in "image"'),
        ({"image": ["good.png"] * 2, "conversations": talk()}, '1 <image> in its turns, but 2 in "image"'),
        ({"conversations": [{"from": "narrator", "value": "q"}]}, "unknown role 'narrator'"),
        ({"conversations": []}, "empty"),
        ({"image": "good.png", "conversations": talk(answer=" ")}, "the answer is empty"),
        ({"conversations": talk("a", "") + talk("b", "\n")}, "the answer is empty"),
    ],
)
def test_a_bad_record(folder, capsys, monkeypatch, stage, record, message):
    data = folder / "data.json"
    data.write_text(json.dumps([GOOD, {"id": "bad", **record}], indent=0))
    flags = ["--data_path", data, "--image_folder", folder, "--output_dir", folder / "out", "--s2_scales", "56,112"]
    error = fails_early(capsys, monkeypatch, stage, *START, *flags)
    assert error.startswith(f"{data}: record 1 (id 'bad', line ")
    assert message in error


def test_pretrain_needs_an_image_in_every_record(folder, capsys, monkeypatch):
    data = folder / "data.jsonl"
    data.write_text(json.dumps(GOOD) + "\n" + json.dumps({"conversations": talk("q")}))
    flags = ["--data_path", data, "--image_folder", folder, "--output_dir", folder / "out", "--s2_scales", "56,112"]
    assert "record 1 (line 2): the plain template needs" in fails_early(capsys, monkeypatch, "pretrain", *START, *flags)


@pytest.mark.parametrize(
    ("content", "message"), [(None, "no such data file"), ("nope", "not JSON"), ("[]", "no records")]
)
def test_a_bad_data_file(folder, capsys, monkeypatch, content, message):
    data = folder / "data.json"
    if content is not None:
        data.write_text(content)
    flags = ["--data_path", data, "--output_dir", folder / "out", "--s2_scales", "56,112"]
    error = fails_early(capsys, monkeypatch, "finetune", *START, *flags)
    assert error.startswith(str(data))
    assert message in error


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--no_such_flag", "1"], "no such flag: --no_such_flag"),
        (["--learning_rate", "fast"], "invalid float value: 'fast'"),
        (["--mm_projector_type", "mlp3x_gelu"], "--mm_projector_type mlp3x_gelu: transformers"),
        (["--version", "v9"], "--template v9: not known"),
        (["--resume_from_checkpoint", "nowhere"], "nowhere: no whole checkpoint"),
        (["--resume_from_checkpoint", "True"], "no whole checkpoint in"),
        (["--image_folder", "nowhere"], "nowhere: no such image folder"),
        (["--lr_scheduler_type", "zigzag"], "zigzag"),
        (["--fsdp", "True"], "--fsdp shards a model over processes"),
        (["--fsdp=true"], "--fsdp shards a model over processes"),
        (["--use_liger_kernel", "True"], "Liger's kernels need a GPU"),
        (["--bits", "4", "--tf32", "True"], "--tf32 True, --bits 4: torch sees no GPU"),
        (["--lora_r", "0", "--learning_rate", "nan"], "--lora_r 0: must be 1 or more; --learning_rate nan: must be 0"),
        (["--gradient_accumulation_steps", "0"], "--gradient_accumulation_steps 0: must be 1 or more"),
        (["--num_train_epochs", "0"], "leaves nothing to do"),
        (["--max_steps", "0"], "leaves nothing to do"),
        (["--lora_dropout", "1"], "--lora_dropout 1.0: must be 0 or more, and less than 1"),
        (["--image_aspect_ratio", "anyres"], "--image_aspect_ratio anyres: must be one of pad"),
        (["--lr_scheduler_type", "cosine_with_min_lr"], "--lr_scheduler_type cosine_with_min_lr: One of min_lr"),
        (["--optim", "galore_adamw"], "--optim galore_adamw: You need to install"),
        (["--metric_for_best_model", "accuracy"], "eval_loss is the only one"),
        (["--do_train", "False"], "--do_train: this program trains"),
        (["--push_to_hub", "True"], "--push_to_hub: "),
        (["--save_strategy", "best"], "--save_strategy best: needs --eval_data_path or --eval_split"),
        (["--eval_on_start", "True"], "--eval_on_start: needs --eval_data_path or --eval_split"),
        (["--eval_split", "0.5", "--greater_is_better", "True"], "eval_loss, by which checkpoints are chosen, is bett"),
        (["--eval_split", "0.5"], "--eval_split 0.5: of 1 records that leaves none on one side"),
        (["--accelerator_config", '{"dispatch_batches": true}'], "dispatch_batches and split_batches make other"),
        (["--dataloader_drop_last", "True"], "--dataloader_drop_last: 1 records are less than a batch of 8"),
        (["--auto_find_batch_size", "True"], "--auto_find_batch_size: would make the global batch smaller"),
        (["--ddp_backend", "gloo"], "--ddp_backend: is for several processes"),
        (["--warmup_ratio", "1.5"], "--warmup_ratio 1.5: must be 0 or more, and less than 1"),
        (["--attn_implementation", "eagre"], "--attn_implementation eagre: Specified"),
        (["--attn_implementation", "flash_attention_9"], "--attn_implementation flash_attention_9: Specified"),
        (["--attn_implementation", "flex_attention"], "--attn_implementation flex_attention: does not train on a CPU"),
        (["--attn_implementation", "paged|eager"], "--attn_implementation paged|eager: is for serving alone"),
    ],
)
def test_bad_flags(folder, capsys, monkeypatch, flags, message):
    data = folder / "data.json"
    data.write_text(json.dumps([GOOD]))
    usual = ["--data_path", data, "--image_folder", folder, "--output_dir", folder / "out", "--s2_scales", "56,112"]
    usual += ["--use_cpu", "True"]
    assert message in fails_early(capsys, monkeypatch, "finetune", *START, *usual, *flags)


def test_a_template_whose_tokens_the_language_model_lacks(folder, capsys, monkeypatch):
    monkeypatch.delattr(assemble, "load_language_model")  # to load weights would be a NameError
    data = folder / "data.json"
    data.write_text(json.dumps([GOOD]))
    flags = ["--data_path", data, "--image_folder", folder, "--output_dir", folder / "out", "--s2_scales", "56,112"]
    assert "ends a turn with <|im_end|>, which" in fails(capsys, "finetune", *START, *flags, "--template", "chatml")


@pytest.mark.parametrize(
    ("template", "lost"),
    [
        (
            "{% for m in messages %}{% if m.role == 'user' %}<image>{% else %}{{ m.content + eos_token }}{% endif %}",
            "que",
        ),
        ("{% for m in messages[-2:] %}{{ m.content + eos_token }}", "images and earlier questions and earlier answers"),
        ("{% for m in messages %}{{ m.content | replace('<image>', '') + eos_token }}", "images"),
        ("{% for m in messages %}{% generation %}{{ m.content + eos_token }}{% endgeneration %}", "questions"),
        ("{% for m in messages %}{{ m.role ~ ': ' ~ m.content | list ~ eos_token }}", "images and questions"),
    ],
)
def test_a_template_that_loses_what_is_said(folder, capsys, monkeypatch, template, lost):
    (folder / "own.jinja").write_text(template + "{% endfor %}")
    (folder / "data.json").write_text(json.dumps([GOOD]))
    flags = ["--data_path", folder / "data.json", "--image_folder", folder, "--output_dir", folder / "out"]
    flags += ["--s2_scales", "56,112", "--template", folder / "own.jinja"]
    error = fails_early(capsys, monkeypatch, "finetune", *START, *flags)
    assert f"the chat template drops, changes or marks wrongly {lost}" in error


@pytest.mark.parametrize("flags", [["--deepspeed", "zero2.json"], ["--report_to", "tensorboard"]])
def test_flags_that_need_a_package(folder, capsys, monkeypatch, flags):
    for package in ("deepspeed", "tensorboard", "tensorboardX"):
        monkeypatch.setitem(sys.modules, package, None)
    usual = ["--data_path", folder / "data.json", "--output_dir", folder / "out", "--s2_scales", "56,112"]
    error = fails_early(capsys, monkeypatch, "finetune", *START, *usual, *flags)
    assert error.startswith(flags[0])
    assert "pip install 'llava-s2[train]'" in error


def test_missing_flags(folder, capsys, monkeypatch):
    assert "--data_path" in fails_early(capsys, monkeypatch, "finetune", "--output_dir", folder / "out")
    data = ["--data_path", folder / "data.json"]
    assert "--model_name_or_path" in fails(capsys, "finetune", "--output_dir", folder / "out", *data)
    assert "--output_dir is missing" in fails(capsys, "finetune", *START, *data)
    data += ["--output_dir", folder / "out"]
    assert "say with --vision_tower" in fails(capsys, "finetune", *START[:2], *data)
    assert "no such folder" in fails(capsys, "finetune", "--model_name_or_path", "/no/such/model", *data)


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ("56,100", "clip-tiny: scales [56, 100]: a tile of 50 pixels is no whole number"),
        ("112,56", "clip-tiny: scales must ascend"),
        ("56,112,112", "clip-tiny: scales must ascend"),
        ("big", "--s2_scales big: must be sides in pixels"),
    ],
)
def test_scales_that_the_tower_cannot_split(folder, capsys, monkeypatch, scales, message):
    data = folder / "data.json"
    data.write_text(json.dumps([GOOD]))
    flags = ["--data_path", data, "--image_folder", folder, "--output_dir", folder / "out", "--s2_scales", scales]
    assert message in fails_early(capsys, monkeypatch, "finetune", *START, *flags)


def test_a_tower_that_would_not_be_used(folder, capsys, monkeypatch, tmp_path):
    (folder / "data.json").write_text(json.dumps([GOOD]))
    tower = GOLDEN / "clip-tiny"
    create_native(tmp_path / "llava", GOLDEN / "vicuna-tiny", tower, [56, 112])
    flags = ["--model_name_or_path", tmp_path / "llava", "--data_path", folder / "data.json", "--image_folder", folder]
    flags += ["--output_dir", folder / "out"]
    line = fails_early(capsys, monkeypatch, "finetune", *flags, "--vision_tower", tower)
    assert "holds a vision tower" in line and "--replace_vision_tower" in line
    assert "by --vision_tower" in fails(capsys, "finetune", *flags, "--replace_vision_tower", "True")
    assert "is no adapter" in fails(capsys, "finetune", *flags, "--base", tmp_path / "llava")


@pytest.mark.parametrize("kind", ["native", "of LLaVA"])
def test_flags_that_ask_for_another_tower_or_projector_than_the_llava_has(folder, capsys, monkeypatch, kind):
    (folder / "data.json").write_text(json.dumps([GOOD]))
    if kind == "native":
        create_native(folder / "llava", GOLDEN / "vicuna-tiny", GOLDEN / "clip-tiny", [56, 112])
    else:
        shutil.copytree(GOLDEN / "llava-tiny-s2", folder / "llava")
    flags = ["--model_name_or_path", folder / "llava", "--data_path", folder / "data.json", "--image_folder", folder]
    flags += ["--output_dir", folder / "out"] + ([] if kind == "native" else ["--vision_tower", GOLDEN / "clip-tiny"])
    for loader in ("assemble", "load_pretrained"):
        monkeypatch.delattr(starting_model, loader)
    others = {"mm_vision_select_layer": (-1, -2), "mm_projector_type": ("linear", "mlp2x_gelu")}
    others |= {"s2_resize_output_to_idx": (1, 0), "image_aspect_ratio": ("square", "pad")}
    for name, (asked, own) in others.items():
        line = fails(capsys, "finetune", *flags, "--use_cpu", "True", f"--{name}={asked}", "--overwrite_output_dir")
        assert f"--{name} {asked}: {folder / 'llava'} was trained with {own}; leave" in line


@pytest.mark.parametrize("part", ["vicuna-tiny", "clip-tiny"])
def test_weights_that_are_no_numbers_are_not_blamed_on_the_records(folder, capsys, part):
    (folder / "data.json").write_text(json.dumps([GOOD]))
    broken = shutil.copytree(GOLDEN / part, folder / part) / "model.safetensors"
    weights = load_file(broken)
    name = next(name for name in weights if name.endswith(("0.mlp.down_proj.weight", "0.mlp.fc1.weight")))
    weights[name][0, 0] = torch.nan
    save_file(weights, broken, {"format": "pt"})
    start = [folder / part if word == GOLDEN / part else word for word in START]
    flags = ["--data_path", folder / "data.json", "--image_folder", folder, "--output_dir", folder / "out"]
    flags += ["--s2_scales", "56,112", "--use_cpu", "True", "--disable_tqdm", "True"]
    error = fails(capsys, "finetune", *start, *flags)
    assert "the model to start from holds NaN or infinity in model." in error and "layers.0.mlp." in error
    assert "and no record is at fault" in error


def test_a_projector_of_another_shape(folder, capsys, monkeypatch):
    data = folder / "data.json"
    data.write_text(json.dumps([GOOD]))
    flags = ["--data_path", data, "--image_folder", folder, "--output_dir", folder / "out", "--s2_scales", "56,112"]
    monkeypatch.delattr(starting_model, "assemble")  # to load weights would be a NameError
    for source, message in ((GOLDEN / "mm_projector.bin", "linear_1.weight (32, 64)"), (folder, "no adapter_model")):
        assert message in fails(capsys, "finetune", *START, *flags, "--pretrain_mm_mlp_adapter", source)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_found_bad_in_training(folder, capsys, monkeypatch, workers):
    monkeypatch.setattr(training_records, "_IMAGES_DECODED_AHEAD", 1)  # the first record alone
    data = folder / "data.json"
    data.write_text(json.dumps([GOOD, {"image": "cut.png", "conversations": talk()}]))
    flags = ["--data_path", data, "--image_folder", folder, "--output_dir", folder / "out", "--s2_scales", "56,112"]
    flags += ["--use_cpu", "True", "--dataloader_num_workers", workers, "--disable_tqdm", "True"]
    error = fails(capsys, "finetune", *START, *flags)
    assert error.startswith(f"{data}: record 1 (line 1): {folder / 'cut.png'}: truncated or damaged")


def test_a_machine_without_the_memory(folder, capsys, monkeypatch):
    def allocate(*_):
        torch.empty(1 << 60)

    monkeypatch.setattr(LlavaTrainer, "training_step", allocate)
    (folder / "data.json").write_text(json.dumps([GOOD]))
    flags = ["--data_path", folder / "data.json", "--image_folder", folder, "--output_dir", folder / "out"]
    flags += ["--s2_scales", "56,112", "--use_cpu", "True", "--disable_tqdm", "True"]
    error = fails(capsys, "finetune", *START, *flags)
    assert error.startswith("out of memory at step 1 (") and "raise --gradient_accumulation_steps" in error


def test_yaml_that_is_none(folder, capsys):
    (folder / "bad.yaml").write_text("a: [")
    (folder / "list.yaml").write_text("- a")
    for name, message in (("bad.yaml", "not YAML"), ("list.yaml", "NAME: VALUE"), ("none.yaml", "no such YAML file")):
        assert f"{name}: " in (error := fails(capsys, "finetune", folder / name))
        assert message in error


def test_python_m_is_the_same_program(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["llava_s2.train", "finetune", "--help"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("llava_s2.train", run_name="__main__")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: llava-s2 train finetune")
    assert "--pretrain_mm_mlp_adapter" in text


def test_a_file_with_every_fault_is_refused_with_how_many_there_are_of_each(folder, capsys, monkeypatch):
    sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
    from faulty_data import RECORDS, write_images

    write_images(folder)
    data = folder / "data.jsonl"
    data.write_text("\n".join(json.dumps(record) for record in RECORDS if record is not None))
    flags = ["--data_path", data, "--image_folder", folder, "--output_dir", folder / "out", "--s2_scales", "56,112"]
    error = fails_early(capsys, monkeypatch, "finetune", *START, *flags)
    assert error.startswith(
        f"{data}: record 1 (id 'gone', line 2): {folder / 'none.jpg'}: no such image file (6 records"
    )
    kinds = ["1 missing_image", "1 image_placeholders", "1 roles", "2 no_target", "1 malformed"]
    assert all(kind in error for kind in kinds)
    assert f"llava-s2 data check {data} --images {folder} lists them all" in error


def test_no_target_within_the_length_is_found_before_weights(folder, capsys, monkeypatch):
    data = folder / "data.json"
    data.write_text(json.dumps([GOOD, {"id": "bad", "conversations": talk("word " * 90)}]))
    flags = ["--data_path", data, "--image_folder", folder, "--output_dir", folder / "out", "--s2_scales", "56,112"]
    error = fails_early(capsys, monkeypatch, "finetune", *START, *flags, "--model_max_length", 60)
    assert error.startswith(f"{data}: record 1 (id 'bad', line 1): no target within --model_max_length 60 of its ")
