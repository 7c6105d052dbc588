"""Training from checkpoints in the original LLaVA's format: what the config says of images and lengths holds."""

import json
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from PIL import Image
from processes import GOLDEN, TINY, run_here, talk
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

sys.path.append(str(Path(__file__).parents[1] / "model"))
from llava_reference import FULL, copy_checkpoint

from llava_s2 import load_pretrained
from llava_s2.cli import main
from llava_s2.model.projector import single_layer
from llava_s2.train.arguments import parse_flags
from llava_s2.train.starting_model import read_projector
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
    monkeypatch.delattr("llava_s2.train.recipe.load_starting_model")  # to load weights is a NameError
    with pytest.raises(NameError):
        run_here([*flags, *model])
    told = capsys.readouterr().out
    assert "more than the language model's max_position_embeddings" in told
    assert "lower --model_max_length from 4096 to 100" in told


def test_llavas_other_name_of_a_single_layer(tmp_path):
    """mlp1x_gelu, whose file names the layer 0."""
    weight, bias = torch.randn(32, 64), torch.randn(32)
    names = {"model.mm_projector.0.weight": weight, "model.mm_projector.0.bias": bias}
    torch.save(names, tmp_path / "mm_projector.bin")
    assert read_projector(str(tmp_path))["linear_1.weight"].equal(weight)
    assert single_layer(read_projector(str(tmp_path)))["bias"].equal(bias)
    flags = ["--model_name_or_path", "m", "--data_path", "d", "--output_dir", "o", "--mm_projector_type", "mlp1x_gelu"]
    assert parse_flags("finetune", flags)[0].mm_projector_type == "linear"


def test_a_linear_projector_is_trained_through_both_stages(image, capsys):
    """LLaVA's first scripts name no --mm_projector_type, which there means a single layer."""
    parts = ["--model_name_or_path", GOLDEN / "vicuna-tiny", "--vision_tower", GOLDEN / "clip-tiny"]
    record = {"image": "red.png", "conversations": talk("<image>", "Red.")}
    flags = [*with_records(image, record), "--use_cpu", "True", "--report_to", "none", "--max_steps", 2]
    flags += ["--mm_use_im_start_end", "False", "--mm_vision_select_layer", -2]

    def train(*more):
        return main(["train", *map(str, [*parts, *flags, *more])])

    assert train("--version", "plain", "--tune_mm_mlp_adapter", "True", "--learning_rate", "1e-2") == 0
    found = torch.load(image / "out" / "mm_projector.bin", weights_only=True)
    assert {name: list(tensor.shape) for name, tensor in found.items()} == {
        "model.mm_projector.weight": [32, 32],
        "model.mm_projector.bias": [32],
    }
    second = ["--pretrain_mm_mlp_adapter", image / "out" / "mm_projector.bin", "--version", "v1"]
    second += ["--lora_enable", "True", "--learning_rate", "1e-3", "--output_dir", image / "lora"]
    assert train(*second) == 0
    model, processor = load_pretrained(image / "lora", dtype="float32")
    adapter = load_file(image / "lora" / "adapter_model.safetensors")
    weight, bias = (
        next(tensor for name, tensor in adapter.items() if name.endswith(f"linear_1.{kind}"))
        for kind in ("weight", "bias")
    )
    assert not torch.equal(weight, found["model.mm_projector.weight"])  # it learnt in stage 2 too
    pixels = processor(images=Image.open(image / "red.png"), text="<image>", return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        features = model.model.vision_tower(pixels).last_hidden_state[0]
        tokens = model.get_image_features(pixels, return_dict=True).pooler_output[0]
    torch.testing.assert_close(tokens, features @ weight.T + bias, rtol=1e-5, atol=1e-5)
    names = ["--base", parts[1], "--vision_tower", parts[3]]
    assert main(["convert", *map(str, [image / "lora", image / "llava", "--to", "llava", *names])]) == 0
    written = load_file(image / "llava" / "model.safetensors")
    assert torch.equal(written["model.mm_projector.weight"].float(), weight)
    assert train(*second, "--mm_projector_type", "mlp2x_gelu", "--output_dir", image / "other") == 2
    assert "name it with --mm_projector_type linear" in capsys.readouterr().err


MARKED = ["--mm_use_im_start_end", "True", "--max_steps", 3, "--learning_rate", "1e-2"]


def rows_of(folder):
    return load_file(folder / "adapter_model.safetensors")[
        "base_model.model.model.language_model.embed_tokens.token_adapter.trainable_tokens_delta"
    ]


def answers(model, processor, image):
    """Logits of a question about an image."""
    text = processor.apply_chat_template([{"role": "user", "content": "<image>\nWhat?"}], add_generation_prompt=True)
    assert "<im_start><image><im_end>" in text
    inputs = processor(images=Image.open(image / "red.png"), text=text, return_tensors="pt")
    ids = inputs["input_ids"][0].tolist()
    assert ids[ids.index(32000) + 17] == 32001
    with torch.no_grad():
        return model(**inputs).logits


@pytest.mark.parametrize("is_tied", [False, True])
def test_a_language_models_new_markers_learn(is_tied, image):
    """Their two rows alone are trained of the embedding, saved with the adapter, loaded, merged and converted."""
    llm = copy_checkpoint(GOLDEN / "vicuna-tiny", image / "llm", tie_word_embeddings=is_tied)
    record = {"image": "red.png", "conversations": talk("What?\n<image>", "Red.")}
    out = image / "out"
    run_here([*with_records(image, record), *FLAGS, *MARKED, "--model_name_or_path", llm])
    own = load_file(llm / "model.safetensors")["model.embed_tokens.weight"].float()
    rows = rows_of(out)
    assert rows.shape == (2, own.shape[1])
    assert ((rows - own.mean(0)).abs().amax(1) > 1e-3).all()  # from the mean, as in LLaVA

    model, processor = load_pretrained(out, dtype="float32")
    embedding = model.get_input_embeddings().weight
    assert torch.equal(embedding[32000:32002], rows)
    assert torch.equal(embedding[:32000], own)
    assert torch.equal(model.lm_head.weight, embedding) == is_tied
    logits = answers(model, processor, image)
    base = AutoModelForImageTextToText.from_pretrained(out / "base", dtype=torch.float32)
    by_peft = PeftModel.from_pretrained(base, out).eval()
    assert torch.allclose(answers(by_peft, processor, image), logits, atol=2e-5)
    sources = ["--vision_tower", GOLDEN / "clip-tiny", "--base", llm]
    for command in (
        ["merge", out, image / "merged", "--dtype", "float32"],
        ["convert", out, image / "llava", "--to", "llava", "--dtype", "float32", *sources],
    ):
        assert main(list(map(str, command))) == 0
        again = load_pretrained(command[2])
        assert torch.allclose(answers(*again, image), logits, atol=2e-5)


def test_stage_1_leaves_the_markers_rows(image, capsys):
    """In a template with markers mm_projector.bin has them too, as LLaVA's; in the plain one, without, they stay."""
    flags = with_records(image, {"image": "red.png", "conversations": talk("<image>", "Red.")})[:-1]
    first = [*TINY, *flags, image / "v1", *MARKED, "--template", "v1"]
    assert main(list(map(str, ["train", "pretrain", *first]))) == 0
    left = torch.load(image / "v1" / "mm_projector.bin")
    assert torch.equal(left["model.embed_tokens.weight"], rows_of(image / "v1"))
    assert main(list(map(str, ["train", "pretrain", *TINY, *flags, image / "plain", *MARKED]))) == 0
    assert set(torch.load(image / "plain" / "mm_projector.bin")) == left.keys() - {"model.embed_tokens.weight"}

    second = [*TINY, *flags, image / "out", *MARKED, "--pretrain_mm_mlp_adapter"]
    capsys.readouterr()
    for place in ("v1", "v1/mm_projector.bin"):
        assert main(list(map(str, ["train", "finetune", *second, image / place]))) == 2
        assert "holds trained rows of the language model too" in capsys.readouterr().err
    going_on = [*TINY[4:], *flags, image / "on", *MARKED, "--learning_rate", 0, "--model_name_or_path", image / "v1"]
    assert main(list(map(str, ["train", "finetune", *going_on]))) == 0
    assert torch.equal(rows_of(image / "on"), rows_of(image / "v1"))


def test_markers_where_they_cannot_be_are_refused(image, capsys):
    flags = [*TINY, *with_records(image, {"conversations": talk("a", "b")}), *MARKED]
    native = image / "native"
    assert main(["convert", str(FULL), str(native), "--vision_tower", str(GOLDEN / "clip-tiny")]) == 0
    (image / "own.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    for wrong, told in {
        ("--replace_vision_tower", "True", "--model_name_or_path", native): "was trained without <im_start>",
        ("--template", image / "own.jinja"): "which this template does not write",
    }.items():
        capsys.readouterr()
        assert main(list(map(str, ["train", "finetune", *flags, *wrong]))) == 2
        assert told in capsys.readouterr().err
