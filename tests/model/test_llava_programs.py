"""LLaVA's small programs on checkpoints: the projector taken out, a delta added to its base."""

import json
import shutil

import pytest
import torch
from llava_reference import FULL, LORA, PROJECTOR, VICUNA
from safetensors.torch import load_file, save_file

from llava_s2.formats import apply_delta, extract_mm_projector


@pytest.mark.parametrize("kind", ["full", "lora", "projector"])
def test_the_projector_is_taken_out_under_llavas_names(kind, tmp_path):
    folder = {"full": FULL, "lora": LORA}.get(kind, tmp_path)
    if kind == "projector":
        shutil.copy(FULL / "config.json", tmp_path)
        shutil.copy(PROJECTOR, tmp_path)
        stored = torch.load(PROJECTOR, weights_only=True)
    elif kind == "full":
        stored = load_file(FULL / "model.safetensors")
    else:
        stored = torch.load(LORA / "non_lora_trainables.bin", weights_only=True)
    output = tmp_path / "out.bin"
    assert extract_mm_projector.main(["--model-path", str(folder), "--output", str(output)]) == 0
    wanted = {name.removeprefix("base_model.model."): t for name, t in stored.items() if "mm_projector" in name}
    found = torch.load(output, weights_only=True)
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_language_model_has_no_projector(tmp_path, capsys):
    assert extract_mm_projector.main(["--model-path", str(VICUNA), "--output", str(tmp_path / "x")]) == 2
    assert "holds no projector" in capsys.readouterr().err


def test_a_delta_and_its_base_make_the_target(tmp_path, capsys):
    """A delta as LLaVA's make_delta has it: the target less the base, with two rows more than the base."""
    base, target = load_file(VICUNA / "model.safetensors"), load_file(FULL / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        target[name] = torch.cat([target[name], torch.ones(2, 32).half()])
    delta = {name: tensor.clone() for name, tensor in target.items()}
    for name, tensor in base.items():
        delta[name][: len(tensor)] -= tensor
    folder = shutil.copytree(FULL, tmp_path / "delta")
    save_file(delta, folder / "model.safetensors")
    flags = ["--base-model-path", str(VICUNA), "--delta-path", str(folder), "--target-model-path"]
    assert apply_delta.main([*flags, str(tmp_path / "made")]) == 0
    made = load_file(tmp_path / "made" / "model.safetensors")
    assert made.keys() == target.keys()
    for name, tensor in delta.items():
        wanted = tensor.clone()
        if name in base:
            wanted[: len(base[name])] += base[name]
        assert torch.equal(made[name], wanted), name
    assert json.loads((tmp_path / "made" / "config.json").read_text()) == json.loads((FULL / "config.json").read_text())
    del delta["model.norm.weight"]
    save_file(delta, folder / "model.safetensors")
    assert apply_delta.main([*flags, str(tmp_path / "other")]) == 2
    assert "is no delta of" in capsys.readouterr().err and not (tmp_path / "other").exists()
