"""Checkpoints that cannot be loaded: one line that names the file and the way out, and exit code 2."""

import json
import shutil
import sys

import httpx2
import huggingface_hub
import pytest
import torch
from huggingface_hub.utils._http import default_client_factory
from llava_reference import FULL, LORA, PROJECTOR, TOWER, VICUNA, change_config, copy_checkpoint, shard
from safetensors.torch import load_file, save_file

from llava_s2 import load_pretrained
from llava_s2.cli import main
from llava_s2.errors import InputError
from llava_s2.formats.create import create_native
from llava_s2.model.assemble import assemble


def refused(path, *parts, base=None, tower=TOWER, **options):
    """Asserts that loading fails with one line that holds each of ``parts``."""
    with pytest.raises(InputError) as caught:
        load_pretrained(path, base, vision_tower=tower, **options)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message, message


def merge_refused(capsys, *arguments):
    """Asserts that ``llava-s2 merge`` exits with 2 and one line, which it returns."""
    assert main(["merge", *map(str, arguments)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("llava-s2: error: ") and not any("Traceback" in line for line in lines)
    return lines[-1]


def test_no_such_folder(tmp_path, capsys):
    assert "nowhere" in merge_refused(capsys, tmp_path / "nowhere", tmp_path / "out")


@pytest.mark.parametrize("command", [["inspect"], ["merge", "--base", "x"]])
def test_a_hub_that_cannot_be_reached_is_told_at_once(command, tmp_path, capsys, monkeypatch):
    asked = []

    class Away(httpx2.BaseTransport):
        def handle_request(self, request):
            asked.append(request.url.path)
            raise httpx2.ConnectError("nothing there", request=request)

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    huggingface_hub.set_client_factory(lambda: httpx2.Client(transport=Away()))
    try:
        more = [str(tmp_path / "out")] if command[0] == "merge" else []
        assert main([command[0], "someone/a-model", *more, *command[1:]]) == 2
    finally:
        huggingface_hub.set_client_factory(default_client_factory)
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "someone/a-model" in line and "cannot be reached" in line and "nothing there" in line
    assert [path for path in asked if "a-model" in path] == ["/api/models/someone/a-model"]


def test_a_folder_without_config_or_weights(tmp_path, capsys):
    folder = tmp_path / "x"
    folder.mkdir()
    assert f"{folder}: there is no config.json" in merge_refused(capsys, folder, tmp_path / "out")
    shutil.copy(FULL / "config.json", folder)
    assert f"{folder}: there are no weights" in merge_refused(capsys, folder, tmp_path / "out")
    (folder / "config.json").write_text("{")
    assert "config.json: not valid JSON" in merge_refused(capsys, folder, tmp_path / "out")


def test_a_missing_shard_is_named(tmp_path):
    folder = shard(copy_checkpoint(FULL, tmp_path / "x"), suffix="safetensors")
    (folder / "model-00002-of-00003.safetensors").unlink()
    refused(folder, folder, "model-00002-of-00003.safetensors is missing")


def test_a_truncated_file_is_named(tmp_path):
    folder = copy_checkpoint(FULL, tmp_path / "x")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    refused(folder, file, "not a whole safetensors file")
    file.unlink()
    (folder / "pytorch_model.bin").write_bytes(PROJECTOR.read_bytes()[:5000])
    refused(folder, "pytorch_model.bin", "not a whole PyTorch file")


class Surprise:
    def __reduce__(self):
        return print, ("code from a checkpoint ran",)


def test_a_bin_file_that_would_run_code_is_refused(tmp_path, capsys):
    folder = copy_checkpoint(FULL, tmp_path / "x")
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Surprise()}, folder / "pytorch_model.bin")
    refused(folder, folder / "pytorch_model.bin", "refused")
    assert "ran" not in capsys.readouterr().out


def other_language_model(target):
    """A language model of hidden size 64 whose weights cannot be read: its config alone must tell."""
    folder = copy_checkpoint(VICUNA, target, hidden_size=64)
    (folder / "model.safetensors").write_bytes(b"unreadable")
    return folder


def test_an_adapter_on_a_base_of_another_hidden_size(tmp_path, capsys):
    base = other_language_model(tmp_path / "base")
    line = merge_refused(capsys, LORA, tmp_path / "out", "--base", base, "--vision_tower", TOWER)
    assert str(LORA) in line and str(base) in line and "32" in line and "64" in line and "--base" in line
    model, processor = assemble(VICUNA, TOWER, [56])
    own = tmp_path / "own"
    model.config.save_pretrained(own)
    processor.save_pretrained(own)
    (own / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    save_file({"x": torch.zeros(1)}, own / "adapter_model.safetensors")
    line = merge_refused(capsys, own, tmp_path / "out", "--vision_tower", TOWER)
    assert str(own) in line and str(base) in line and "64" in line
    llava = copy_checkpoint(FULL, tmp_path / "llava", hidden_size=64)
    (llava / "model.safetensors").write_bytes(b"unreadable")
    line = merge_refused(capsys, own, tmp_path / "out", "--base", llava, "--vision_tower", TOWER)
    assert str(own) in line and str(llava) in line and "32" in line and "64" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "llava", "own"]


def test_configs_and_indices_of_another_kind(tmp_path, capsys):
    folder = copy_checkpoint(FULL, tmp_path / "x")
    for text in ('{"model_type": null}', '{"model_type": 3}', "{}"):
        (folder / "config.json").write_text(text)
        assert f"{folder}/config.json: names no model_type" in merge_refused(capsys, folder, tmp_path / "out")
    shutil.copy(FULL / "config.json", folder)
    shard(folder, suffix="safetensors")
    for text in ("{}", '{"weight_map": null}', '{"weight_map": {"norm.weight": 3}}'):
        (folder / "model.safetensors.index.json").write_text(text)
        refused(folder, folder / "model.safetensors.index.json", "has no weight_map")


@pytest.mark.parametrize("text", ["{", "[]", '{"image_mean": 3}', '{"image_mean": ["a"]}', '{"image_std": [0, 0, 0]}'])
def test_a_tower_whose_preprocessor_config_is_malformed(tmp_path, text):
    tower = copy_checkpoint(TOWER, tmp_path / "tower")
    if text.startswith('{"'):
        text = json.dumps(json.loads((tower / "preprocessor_config.json").read_text()) | json.loads(text))
    (tower / "preprocessor_config.json").write_text(text)
    refused(FULL, tower, "preprocessor_config.json", tower=tower)


@pytest.mark.parametrize(
    ("file", "change", "told"),
    [
        (
            "processor_config.json",
            {"processor_class": "OurProcessor"},
            "no processor could be read there (transf",
        ),
        ("tokenizer_config.json", None, "the tokenizer has no end-of-sequence token"),
    ],
)
def test_a_native_folder_with_a_processor_that_cannot_be_used(tmp_path, file, change, told):
    folder = tmp_path / "x"
    create_native(folder, VICUNA, TOWER, [56, 112])
    if change is None:  # an upload that forgot it
        (folder / file).unlink()
    else:
        (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | change))
    refused(folder, folder, told, tower=None)


def test_a_gguf_language_model_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match=r"model\.gguf: GGUF files.*pip install 'llava-s2\[tiny\]'"):
        assemble(tmp_path / "model.gguf", TOWER, [56])


def test_an_adapter_whose_base_is_gone(capsys, tmp_path):
    line = merge_refused(capsys, LORA, tmp_path / "out", "--vision_tower", TOWER)
    assert "vicuna-tiny" in line and "--base" in line


def test_a_lora_without_its_projector(tmp_path):
    folder = copy_checkpoint(LORA, tmp_path / "x")
    (folder / "non_lora_trainables.bin").unlink()
    refused(folder, folder, "non_lora_trainables.bin", base=VICUNA)


def test_half_of_a_lora_in_the_original_format(tmp_path):
    folder = copy_checkpoint(LORA, tmp_path / "x")
    tensors = torch.load(folder / "adapter_model.bin", weights_only=True)
    torch.save({name: t for name, t in tensors.items() if "layers.1." not in name}, folder / "adapter_model.bin")
    refused(folder, folder, "lacks", "layers.1.mlp.down_proj.lora_A", base=VICUNA)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"s2_scales": "56,100"}, "56, 112, 168"),
        ({"s2_scales": "56,112,160"}, "56, 112, 168"),
        ({"s2_scales": "large"}, "s2_scales"),
        ({"image_aspect_ratio": "anyres"}, "image_aspect_ratio"),
        ({"mm_vision_select_layer": -9}, "feature_layer"),
        ({"mm_vision_select_feature": "cls_patch"}, "mm_vision_select_feature"),
        ({"mm_vision_select_feature": "best"}, "mm_vision_select_feature"),
        ({"mm_projector_type": "mlp3x_gelu"}, "mlp3x_gelu"),
        ({"mm_projector_type": "linear"}, "mm_projector_type"),
        ({"model_type": "llava_unheard_of"}, "unheard_of"),
    ],
)
def test_configs_that_ask_for_what_is_not_there(change, told, tmp_path):
    folder = copy_checkpoint(FULL, tmp_path / "x", **change)
    refused(folder, folder / "config.json", told)


def test_a_projector_of_another_width(tmp_path):
    folder = copy_checkpoint(FULL, tmp_path / "x")
    tensors = load_file(folder / "model.safetensors")
    first = tensors["model.mm_projector.0.weight"]
    save_file(tensors | {"model.mm_projector.0.weight": first[:, :32].contiguous()}, folder / "model.safetensors")
    refused(folder, folder, "32", "96", "widen")
    save_file(tensors | {"model.mm_projector.0.weight": first[:, :50].contiguous()}, folder / "model.safetensors")
    refused(folder, folder, "50", "96", "s2_scales")


def test_tensors_that_are_missing_left_over_or_misshapen(tmp_path):
    folder = copy_checkpoint(FULL, tmp_path / "x")
    tensors = load_file(folder / "model.safetensors")
    norm = tensors.pop("model.norm.weight")
    save_file(tensors, folder / "model.safetensors")
    refused(folder, "norm.weight", folder)
    save_file(tensors | {"model.norm.weight": norm, "model.extra.weight": norm.clone()}, folder / "model.safetensors")
    refused(folder, "extra.weight", folder)
    save_file(tensors | {"model.norm.weight": norm[:8].contiguous()}, folder / "model.safetensors")
    refused(folder, "norm.weight", "(8,)", folder)


def test_vision_towers_that_cannot_be_read(tmp_path):
    refused(FULL, "clip-tiny", "--vision_tower", tower=None)
    refused(FULL, VICUNA, tower=VICUNA)
    bare = copy_checkpoint(TOWER, tmp_path / "bare")
    (bare / "preprocessor_config.json").unlink()
    refused(FULL, bare, "preprocessor_config.json", tower=bare)


def test_a_language_model_alone_is_no_llava():
    refused(VICUNA, VICUNA, "train pretrain")


def test_settings_that_are_not_to_be_had():
    refused(FULL, "float31", dtype="float31")
    refused(FULL, "3bit", quantization="3bit")


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_quantization_without_its_package_or_gpu(quantization, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused(FULL, quantization, quantization=quantization)


def test_int8_is_for_a_cpu_with_the_products_for_it(monkeypatch):
    refused(FULL, "on a GPU", "8bit", quantization="int8", device_map="auto")
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    refused(FULL, "int8", "VNNI", "float32", quantization="int8")


def test_merge_takes_adapters_and_new_folders_only(tmp_path, capsys):
    assert "nothing to merge" in merge_refused(capsys, FULL, tmp_path / "out", "--vision_tower", TOWER)
    (tmp_path / "notes.txt").write_text("mine")
    arguments = ["--base", VICUNA, "--vision_tower", TOWER]
    assert str(tmp_path) in merge_refused(capsys, LORA, tmp_path, *arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_assembling_from_what_is_not_there(tmp_path):
    with pytest.raises(InputError, match="56, 112, 168"):
        assemble(VICUNA, TOWER, [56, 100])
    with pytest.raises(InputError, match="nowhere"):
        assemble(tmp_path / "nowhere", TOWER, [56])
    with pytest.raises(InputError, match="nowhere"):
        assemble(VICUNA, tmp_path / "nowhere", [56])


def test_an_own_checkpoint_whose_config_was_changed(tmp_path):
    model, processor = assemble(VICUNA, TOWER, [56])
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    vision_config = json.loads((tmp_path / "config.json").read_text())["vision_config"]
    change_config(tmp_path, vision_config=vision_config | {"scales": [56, 112]})
    refused(tmp_path, tmp_path, "multi_modal_projector.linear_1.weight", "32", "64", tower=None)
    change_config(tmp_path, vision_config=vision_config | {"scales": [56, 100]})
    refused(tmp_path, tmp_path / "config.json", "56, 112, 168", tower=None)
