"""Conversions: there and back bit for bit, into what the original code and stock transformers read."""

import json

import numpy as np
import pytest
import torch
from llava_reference import (
    FULL,
    LORA,
    TOWER,
    VICUNA,
    all_logits,
    change_config,
    copy_checkpoint,
    reference_logits,
    shard,
)
from PIL import Image
from safetensors.torch import load_file, save_file
from test_loading import single_scale
from transformers import AutoProcessor, CLIPVisionModel, LlavaForConditionalGeneration

from llava_s2 import load_pretrained
from llava_s2.cli import main
from llava_s2.formats import lazy_tensors as folder_module
from llava_s2.model.assemble import assemble


def convert(*arguments):
    assert main(["convert", *map(str, arguments)]) == 0


def convert_refused(capsys, *arguments):
    """Asserts that ``llava-s2 convert`` exits with 2 and one line, which it returns."""
    assert main(["convert", *map(str, arguments)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("llava-s2: error: ")
    return lines[-1]


def folder_bytes(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def tensor_bytes(folder):
    """Dtype, shape and bytes of every tensor, from one file or shards."""
    tensors = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
    for file in folder.glob("pytorch_model*.bin"):
        tensors |= torch.load(file, weights_only=True)
    return {
        name: (tensor.dtype, tuple(tensor.shape), tensor.contiguous().view(torch.uint8).numpy().tobytes())
        for name, tensor in tensors.items()
    }


def own_tower_checkpoint(target):
    """The reference checkpoint with a tower of its own inside, buffers of old versions, and markers for its images."""
    folder = copy_checkpoint(FULL, target, mm_use_im_start_end=True, mm_use_im_patch_token=True, vocab_size=32003)
    tensors = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name, tensor in load_file(TOWER / "model.safetensors").items():
        noise = torch.randn(tensor.shape, generator=generator)
        tensors[f"model.vision_tower.vision_tower.{name}"] = (tensor + 0.01 * noise).half()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.cat([tensors[name], torch.randn(3, 32, generator=generator).half()])
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.rand(4, generator=generator).half()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    added = {"<im_patch>": 32000, "<im_start>": 32001, "<im_end>": 32002}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    return folder


def test_the_reference_there_and_back_is_the_same_files(tmp_path):
    convert(FULL, tmp_path / "ours", "--vision_tower", TOWER)
    convert(tmp_path / "ours", tmp_path / "back", "--to", "llava")
    back, wanted = folder_bytes(tmp_path / "back"), folder_bytes(FULL)
    config = json.loads(back.pop("config.json"))
    assert config == json.loads(wanted.pop("config.json"))
    assert back == wanted  # weights and tokenizer, byte for byte


def test_a_tower_inside_markers_and_buffers_there_and_back(tmp_path):
    folder = own_tower_checkpoint(tmp_path / "x")
    convert(folder, tmp_path / "ours", "--vision_tower", TOWER, "--dtype", "float16")
    # A tower that is named replaces the one inside, so the way back has its weights.
    change_config(folder, mm_vision_tower=str(TOWER))
    convert(folder, tmp_path / "ours2")
    convert(tmp_path / "ours2", tmp_path / "back", "--to", "llava")
    assert tensor_bytes(tmp_path / "back") == tensor_bytes(folder)
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == json.loads(
        (folder / "config.json").read_text()
    )
    assert (tmp_path / "back" / "added_tokens.json").read_bytes() == (folder / "added_tokens.json").read_bytes()
    model, processor = load_pretrained(tmp_path / "ours2")
    assert model.config.image_token_id == 32003 and model.config.text_config.vocab_size == 32004
    assert "<im_start><image><im_end>" in processor.apply_chat_template([{"role": "user", "content": "<image>"}])


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_in_and_shards_out(suffix, tmp_path, monkeypatch, golden):
    folder = shard(copy_checkpoint(FULL, tmp_path / "x"), suffix=suffix)
    monkeypatch.setattr(folder_module, "SHARD_BYTES", 3_000_000)
    convert(folder, tmp_path / "ours", "--vision_tower", TOWER)
    index = json.loads((tmp_path / "ours" / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "ours").glob("*.safetensors"))
    assert files == sorted(set(index["weight_map"].values())) and len(files) == 2
    convert(tmp_path / "ours", tmp_path / "back", "--to", "llava")
    assert tensor_bytes(tmp_path / "back") == tensor_bytes(FULL)
    logits = all_logits(*load_pretrained(tmp_path / "ours", dtype="float32"), golden, 2)
    np.testing.assert_allclose(logits[:, :32000], reference_logits(golden, "full")[:2], atol=1e-2, rtol=0)


def test_a_converted_model_is_the_one_that_load_pretrained_gives(tmp_path):
    convert(FULL, tmp_path / "ours", "--vision_tower", TOWER)
    ours, processor = load_pretrained(tmp_path / "ours")
    wanted, wanted_processor = load_pretrained(FULL, vision_tower=TOWER)
    assert ours.dtype == torch.float16
    assert ours.generation_config.to_dict() == wanted.generation_config.to_dict()
    state = wanted.state_dict()
    assert ours.state_dict().keys() == state.keys()
    assert all(tensor.equal(state[name]) for name, tensor in ours.state_dict().items())
    processor.save_pretrained(tmp_path / "one")
    wanted_processor.save_pretrained(tmp_path / "other")
    saved, wanted_files = folder_bytes(tmp_path / "one"), folder_bytes(tmp_path / "other")
    for name in ("processor_config.json", "tokenizer.json", "chat_template.jinja"):
        assert saved[name] == wanted_files[name]
    assert processor.chat_template == wanted_processor.chat_template
    config = (tmp_path / "ours" / "config.json").read_text()
    assert str(TOWER) not in config  # no path of this machine


@pytest.mark.parametrize("kind", ["lora", "projector"])
def test_adapters_become_whole_checkpoints_in_both_formats(kind, tmp_path, golden):
    """The reference's LoRA is on the vision tower's layers too, so in LLaVA's format the tower is inside."""
    if kind == "lora":
        folder, dtype = LORA, torch.float32
        wanted = reference_logits(golden, "lora")[:2]
    else:
        folder, dtype = tmp_path / "projector", torch.float16
        folder.mkdir()
        (folder / "config.json").write_bytes((FULL / "config.json").read_bytes())
        (folder / "mm_projector.bin").write_bytes((FULL.parent / "mm_projector.bin").read_bytes())
        wanted = all_logits(*load_pretrained(folder, VICUNA, vision_tower=TOWER, dtype="float32"), golden, 2)[:, :32000]
    for form in ("native", "llava"):
        convert(folder, tmp_path / form, "--base", VICUNA, "--vision_tower", TOWER, "--to", form)
        if kind == "projector":  # float32 over a float16 base: nothing of it is rounded
            written = [row[2] for row in tensor_bytes(tmp_path / form).values()]
            given = torch.load(folder / "mm_projector.bin", weights_only=True).values()
            assert all(tensor.numpy().tobytes() in written for tensor in given)
        model, processor = load_pretrained(tmp_path / form)
        assert model.dtype == dtype
        logits = all_logits(model.float(), processor, golden, 2)[:, :32000]
        np.testing.assert_allclose(logits, wanted, atol=1e-3 if kind == "lora" else 1e-2, rtol=0)


def test_an_own_model_in_the_original_format(tmp_path, golden):
    """Not made from a LLaVA checkpoint: the config is written from the model's, the tokenizer comes from the base."""
    torch.manual_seed(0)
    model, processor = assemble(VICUNA, TOWER, [56, 112, 168])
    model.save_pretrained(tmp_path / "own")
    processor.save_pretrained(tmp_path / "own")
    arguments = [tmp_path / "own", tmp_path / "llava", "--to", "llava", "--base", VICUNA, "--vision_tower", TOWER]
    convert(*arguments)
    config = json.loads((tmp_path / "llava" / "config.json").read_text())
    reference = json.loads((FULL / "config.json").read_text())
    differing = {key for key in reference if config.get(key) != reference[key]}
    assert differing <= {"_name_or_path", "mm_vision_tower", "torch_dtype", "transformers_version"}
    assert config["torch_dtype"] == "float32" and config["mm_vision_tower"] == str(TOWER)
    assert tensor_bytes(tmp_path / "llava").keys() == tensor_bytes(FULL).keys()
    again = load_pretrained(tmp_path / "llava")
    np.testing.assert_array_equal(all_logits(*again, golden, 2), all_logits(model, processor, golden, 2))


def test_a_single_scale_model_for_stock_transformers(tmp_path, golden):
    """From an S2 tower of one scale, which does not keep the last block, and from LLaVA's format."""
    torch.manual_seed(0)
    model, processor = assemble(VICUNA, TOWER, [56])
    model.save_pretrained(tmp_path / "own")
    processor.save_pretrained(tmp_path / "own")
    convert(tmp_path / "own", tmp_path / "hf", "--to", "hf", "--vision_tower", TOWER)
    wanted = all_logits(model, processor, golden, 2)
    llava = single_scale(FULL, tmp_path / "llava")
    convert(llava, tmp_path / "hf2", "--to", "hf", "--vision_tower", TOWER, "--dtype", "float32")
    wanted_too = all_logits(*load_pretrained(llava, vision_tower=TOWER, dtype="float32"), golden, 2)
    for folder, logits in ((tmp_path / "hf", wanted), (tmp_path / "hf2", wanted_too)):
        stock = LlavaForConditionalGeneration.from_pretrained(folder)
        tower = stock.model.vision_tower
        assert isinstance(tower, CLIPVisionModel) and stock.config.vision_feature_layer == -2
        last_block = {name: tensor for name, tensor in tower.state_dict().items() if ".layers.3." in name}
        source = load_file(TOWER / "model.safetensors")
        assert len(last_block) == 16
        for name, tensor in last_block.items():
            assert tensor.equal(source["vision_model." + name.removeprefix("vision_model.")])
        stock_processor = AutoProcessor.from_pretrained(folder, backend="pil")
        np.testing.assert_allclose(all_logits(stock, stock_processor, golden, 2), logits, atol=1e-5, rtol=0)
        assert not list(folder.glob("*.py"))


def test_what_cannot_be_had_in_a_form(tmp_path, capsys):
    out = tmp_path / "out"
    line = convert_refused(capsys, FULL, out, "--to", "hf", "--vision_tower", TOWER)
    assert "56, 112, 168" in line and "--to native" in line
    model, processor = assemble(VICUNA, TOWER, [56])
    model.config.vision_config.backbone_config._name_or_path = ""
    model.save_pretrained(tmp_path / "own")
    processor.save_pretrained(tmp_path / "own")
    assert "--vision_tower" in convert_refused(capsys, tmp_path / "own", out, "--to", "hf")
    assert "--vision_tower" in convert_refused(capsys, tmp_path / "own", out, "--to", "llava", "--base", VICUNA)
    assert "--base" in convert_refused(capsys, tmp_path / "own", out, "--to", "llava", "--vision_tower", TOWER)
    assert "language model" in convert_refused(capsys, VICUNA, out)
    assert not out.exists() and not list(tmp_path.glob(".*"))


def test_weights_that_do_not_fit_the_config_are_told_before_writing(tmp_path, capsys):
    folder = copy_checkpoint(FULL, tmp_path / "x")
    tensors = load_file(folder / "model.safetensors")
    norm = tensors.pop("model.norm.weight")
    save_file(tensors, folder / "model.safetensors")
    assert "norm.weight" in convert_refused(capsys, folder, tmp_path / "out", "--vision_tower", TOWER)
    save_file(tensors | {"model.norm.weight": norm[:8].contiguous()}, folder / "model.safetensors")
    assert "(8,)" in convert_refused(capsys, folder, tmp_path / "out", "--vision_tower", TOWER)
    save_file(tensors | {"model.norm.weight": norm, "model.more": norm.clone()}, folder / "model.safetensors")
    assert "more" in convert_refused(capsys, folder, tmp_path / "out", "--vision_tower", TOWER)
    assert not (tmp_path / "out").exists()


def test_pixels_are_those_of_the_original_after_converting(tmp_path, golden):
    convert(FULL, tmp_path / "ours", "--vision_tower", TOWER)
    processor = AutoProcessor.from_pretrained(tmp_path / "ours")
    for number, case in enumerate(golden["cases"][:2]):
        pixels = processor(images=Image.open(FULL.parent / case["image"]), text="<image>", return_tensors="np")
        np.testing.assert_allclose(
            pixels["pixel_values"][0], golden["expected"][f"pixel_values_{number}"], atol=1e-5, rtol=0
        )
