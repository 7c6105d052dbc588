"""Training from checkpoints in the original LLaVA's format: what the config says of images and lengths holds."""

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from processes import GOLDEN, run_here, talk
from safetensors.torch import load_file, save_file

sys.path.append(str(Path(__file__).parents[1] / "model"))
from llava_reference import FULL, copy_checkpoint

from llava_s2.train.trainer import LlavaTrainer

FLAGS = ["--max_steps", 1, "--save_strategy", "no", "--lora_enable", "True", "--per_device_train_batch_size", 1]


@pytest.fixture
def image(tmp_path):
    Image.new("RGB", (56, 40), "red").save(tmp_path / "red.png")
    return tmp_path


def with_records(folder, *records):
    (folder / "data.json").write_text(json.dumps(list(records)))
    return ["--data_path", folder / "data.json", "--image_folder", folder, "--output_dir", folder / "out"]


def from_checkpoint(folder):
    tower = ["--vision_tower", GOLDEN / "clip-tiny"]
    return ["--model_name_or_path", folder, *tower, "--s2_scales", "56,112,168"]


@pytest.mark.parametrize("template", [None, "vicuna_v1", "llama_2"])
def test_images_stay_between_their_markers(template, image, monkeypatch):
    """mm_use_im_start_end, whatever template is named: <im_start>, 16 patches, <im_end>, as LLaVA's training has it."""
    folder = copy_checkpoint(FULL, image / "x", mm_use_im_start_end=True)
    tensors = load_file(folder / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.cat([tensors[name], torch.ones(2, 32).half()])
    save_file(tensors, folder / "model.safetensors")
    seen = []
    step = LlavaTrainer.training_step
    monkeypatch.setattr(
        LlavaTrainer,
        "training_step",
        lambda self, *args: seen.append(args[1]["input_ids"][0].tolist()) or step(self, *args),
    )
    record = {"image": "red.png", "conversations": talk("What?\n<image>", "Red.")}
    named = [] if template is None else ["--template", template]
    run_here([*with_records(image, record), *FLAGS, *from_checkpoint(folder), *named])
    start, end, patch = 32000, 32001, 32002
    assert [token for token in seen[0] if token >= start] == [start, *[patch] * 16, end]
    assert seen[0][seen[0].index(start) :].index(end) == 17


@pytest.mark.parametrize("in_llavas_format", [True, False])
def test_examples_past_the_positions_are_told_before_weights(in_llavas_format, image, capsys, monkeypatch):
    record = {"image": "red.png", "conversations": talk("<image>\nWhat?", "red " * 70)}
    flags = [*with_records(image, record), *FLAGS, "--model_max_length", 4096]
    folder = copy_checkpoint(
        FULL if in_llavas_format else GOLDEN / "vicuna-tiny", image / "x", max_position_embeddings=100
    )
    model = from_checkpoint(folder) if in_llavas_format else ["--model_name_or_path", folder]
    monkeypatch.setattr("llava_s2.train.recipe._load_model", lambda *args, **kwargs: pytest.fail("told before weights"))
    with pytest.raises(pytest.fail.Exception):
        run_here([*flags, *model])
    told = capsys.readouterr().out
    assert "more than the language model's max_position_embeddings" in told
    assert "lower --model_max_length from 4096 to 100" in told
