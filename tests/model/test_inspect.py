"""``llava-s2 inspect`` on every kind of folder: what it says, against what the loader makes of it."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from llava_reference import FULL, LORA, PROJECTOR, TOWER, VICUNA, change_config, copy_checkpoint, shard
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from test_loading import single_scale
from transformers import SiglipImageProcessorPil, SiglipVisionConfig, SiglipVisionModel

from llava_s2 import load_pretrained
from llava_s2.cli import main
from llava_s2.errors import InputError
from llava_s2.formats.model_source import ModelSource
from llava_s2.model.assemble import assemble
from llava_s2.model.embedded import shipped_model
from llava_s2.weight_files import read_headers

LLM = {"type": "llama", "hidden": 32, "layers": 2, "vocabulary": 32000}
OWN_LLM = LLM | {"vocabulary": 32001}


def inspected(capsys, *arguments):
    """Runs the command in both forms; the JSON object."""
    status = main(["inspect", *map(str, arguments)])
    table = capsys.readouterr().out
    assert main(["inspect", *map(str, arguments), "--json"]) == status
    report = json.loads(capsys.readouterr().out)
    assert status == (1 if report["problems"] else 0)
    assert all(problem in table for problem in report["problems"])
    assert report["format"] in table and ("missing          nothing" in table) == (not report["problems"])
    return report


def told(report, **wanted):
    assert {key: report[key] for key in wanted} == wanted


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """This project's full checkpoints of one and of three scales, and an adapter of the latter's parts."""
    root = tmp_path_factory.mktemp("own")
    for name, scales in (("one", [56]), ("three", [56, 112, 168])):
        model, processor = assemble(VICUNA, TOWER, scales)
        model.save_pretrained(root / name)
        processor.save_pretrained(root / name)
    adapted = get_peft_model(model, LoraConfig(target_modules=["v_proj"], modules_to_save=["multi_modal_projector"]))
    adapted.peft_config["default"].base_model_name_or_path = str(VICUNA)
    adapted.save_pretrained(str(root / "adapter"))
    model.config.save_pretrained(root / "adapter")
    processor.save_pretrained(root / "adapter")
    return root


def test_own_full_checkpoints(own, capsys):
    report = inspected(capsys, own / "three")
    told(report, kind="hf", scales=[56, 112, 168], tokens_per_image=16, vision_tower="clip_vision_model")
    told(report, projector=[[32, 96], [32, 32]], language_model=OWN_LLM, template="vicuna_v1", problems=[])
    told(report, vision_tower_inside=True)
    weights = load_file(own / "three" / "model.safetensors").values()
    assert report["dtypes"] == {"float32": sum(4 * tensor.numel() for tensor in weights)}
    told(inspected(capsys, own / "one"), scales=[56], tokens_per_image=16, projector=[[32, 32], [32, 32]], problems=[])


def test_own_adapter(own, capsys):
    report = inspected(capsys, own / "adapter")
    told(report, kind="adapter", scales=[56, 112, 168], tokens_per_image=16, base=str(VICUNA), problems=[])
    told(report, projector=[[32, 96], [32, 32]], template="vicuna_v1")


def test_original_full_in_safetensors_and_sharded_bin(tmp_path, capsys):
    expected = {"kind": "llava_full", "scales": [56, 112, 168], "tokens_per_image": 16, "language_model": LLM}
    expected |= {"projector": [[32, 96], [32, 32]], "template": "vicuna_v1", "problems": []}
    first = inspected(capsys, FULL, "--vision_tower", TOWER)
    told(first, vision_tower=str(TOWER), vision_tower_inside=False, **expected)
    folder = shard(copy_checkpoint(FULL, tmp_path / "x", mm_vision_tower=str(TOWER)), suffix="bin")
    second = inspected(capsys, folder)
    told(second, **expected)
    assert first["dtypes"] == second["dtypes"] and set(first["dtypes"]) == {"float16"}


def test_original_full_of_one_scale(tmp_path, capsys):
    folder = single_scale(FULL, tmp_path / "x", mm_vision_tower=str(TOWER))
    told(inspected(capsys, folder), scales=[56], tokens_per_image=16, projector=[[32, 32], [32, 32]], problems=[])


def test_original_lora_and_projector(tmp_path, capsys):
    arguments = ["--base", VICUNA, "--vision_tower", TOWER]
    report = inspected(capsys, LORA, *arguments)
    told(report, kind="llava_lora", scales=[56, 112, 168], base=str(VICUNA), problems=[])
    told(report, projector=[[32, 96], [32, 32]])
    shutil.copy(FULL / "config.json", tmp_path)
    shutil.copy(PROJECTOR, tmp_path)
    told(inspected(capsys, tmp_path, *arguments), kind="llava_projector", tokens_per_image=16, problems=[])


def test_a_language_model_alone(capsys):
    told(inspected(capsys, VICUNA), kind="llm", scales=None, projector=[], language_model=LLM, problems=[])


def test_hugging_faces_short_config(own, tmp_path, capsys):
    """llava-hf's published configs leave out what is the model type's default."""
    shutil.copytree(own / "one", tmp_path / "x")
    clip = json.loads((TOWER / "config.json").read_text())
    change_config(tmp_path / "x", text_config={"model_type": "llama"}, vision_config=clip)
    told(inspected(capsys, tmp_path / "x"), kind="hf", scales=[56], language_model=OWN_LLM, problems=[])


def problem(capsys, *arguments):
    (only,) = inspected(capsys, *arguments)["problems"]
    return only


def test_what_is_missing(own, tmp_path, capsys):
    assert "clip-tiny" in problem(capsys, FULL) and "--vision_tower" in problem(capsys, FULL)
    assert "vicuna-tiny" in problem(capsys, LORA, "--vision_tower", TOWER)
    sharded = shard(copy_checkpoint(FULL, tmp_path / "shards"), suffix="safetensors")
    (sharded / "model-00002-of-00003.safetensors").unlink()
    assert "model-00002-of-00003.safetensors is missing" in problem(capsys, sharded, "--vision_tower", TOWER)
    bare = copy_checkpoint(FULL, tmp_path / "bare")
    (bare / "tokenizer.model").unlink()
    assert "tokenizer" in problem(capsys, bare, "--vision_tower", TOWER)
    half = copy_checkpoint(LORA, tmp_path / "half")
    (half / "non_lora_trainables.bin").unlink()
    assert "non_lora_trainables.bin is missing" in problem(capsys, half)
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copy(FULL / "config.json", empty)
    assert "there are no weights" in problem(capsys, empty)
    thin = copy_checkpoint(VICUNA, tmp_path / "thin", num_hidden_layers=3)
    assert "layers 2 have no weights" in problem(capsys, thin)


def test_what_is_wrong(tmp_path, capsys):
    folder = copy_checkpoint(FULL, tmp_path / "x")
    tensors = load_file(folder / "model.safetensors")
    narrow = tensors["model.mm_projector.0.weight"][:, :32].contiguous()
    save_file(tensors | {"model.mm_projector.0.weight": narrow}, folder / "model.safetensors")
    line = problem(capsys, folder, "--vision_tower", TOWER)
    assert "32" in line and "96" in line and "--widen_from" in line
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "not a whole safetensors file" in problem(capsys, folder, "--vision_tower", TOWER)
    other = copy_checkpoint(VICUNA, tmp_path / "other", hidden_size=64)
    line = problem(capsys, LORA, "--base", other, "--vision_tower", TOWER)
    assert "32" in line and "64" in line and "--base" in line


def test_no_checkpoint_at_all(tmp_path, capsys):
    assert main(["inspect", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path)]) == 2
    assert "config.json" in capsys.readouterr().err


class Surprise:
    def __reduce__(self):
        return print, ("code from a checkpoint ran",)


def test_headers_of_bin_files_are_the_tensors_and_run_no_code(tmp_path, capsys):
    tensors = {
        "plain": torch.zeros(3, 5),
        "half": torch.zeros(7, dtype=torch.float16),
        "brain": torch.zeros(2, 2, dtype=torch.bfloat16),
        "view": torch.arange(12)[2:8].view(2, 3),
        "parameter": torch.nn.Parameter(torch.zeros(4)),
        "scalar": torch.tensor(True),
    }
    torch.save(tensors, tmp_path / "x.bin")
    torch.save(tensors, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    for file in ("x.bin", "old.bin"):
        found = {name: (header.shape, header.dtype) for name, header in read_headers(tmp_path / file).items()}
        assert found == {n: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for n, t in tensors.items()}
    torch.save({"weight": Surprise()}, tmp_path / "bad.bin")
    with pytest.raises(InputError, match=r"bad\.bin: refused"):
        read_headers(tmp_path / "bad.bin")
    torch.save([torch.zeros(1)], tmp_path / "list.bin")
    with pytest.raises(InputError, match="dictionary"):
        read_headers(tmp_path / "list.bin")
    (tmp_path / "cut.bin").write_bytes((tmp_path / "x.bin").read_bytes()[:700])
    with pytest.raises(InputError, match="not a whole"):
        read_headers(tmp_path / "cut.bin")
    assert "ran" not in capsys.readouterr().out


def test_it_answers_without_torch_or_transformers():
    program = (
        "import sys; from llava_s2.cli import main; sys.argv[0] = 'llava-s2'\n"
        f"main(['inspect', {str(FULL)!r}, '--vision_tower', {str(TOWER)!r}])\n"
        "assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    starter = f"import sys; sys.argv[0] = 'llava-s2'; exec({program!r})"
    subprocess.run([sys.executable, "-c", starter], check=True, stdout=subprocess.DEVNULL)


def test_the_embedded_default_goes_by_its_name(capsys):
    by_name, by_path = inspected(capsys, "embedded"), inspected(capsys, shipped_model())
    assert by_name | {"path": 0} == by_path | {"path": 0} and by_name["kind"] == "adapter"
    named, placed = (ModelSource(model).fingerprint() for model in ("embedded", str(shipped_model())))
    assert named["model"] == "embedded" and named["model_checksum"] == placed["model_checksum"]


@pytest.mark.parametrize(
    ("feature", "origin", "tokens"),
    [
        ("patch", {}, 16),  # LLaVA-NeXT's SigLIP keeps all
        ("patch", {"vision_resolution": 56, "interpolate_mode": "linear"}, 15),  # VILA's does not
        ("cls_patch", {"num_video_frames": 8}, 16),
    ],
)
def test_tokens_of_a_siglip_are_those_of_the_checkpoints_origin(feature, origin, tokens, tmp_path, capsys):
    settings = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    siglip = SiglipVisionModel(SiglipVisionConfig(**settings, image_size=56, patch_size=14)).eval()
    siglip.save_pretrained(tmp_path / "siglip")
    SiglipImageProcessorPil(size={"height": 56, "width": 56}).save_pretrained(tmp_path / "siglip")
    tower = str(tmp_path / "siglip")
    folder = single_scale(FULL, tmp_path / "x", mm_vision_tower=tower, mm_vision_select_feature=feature, **origin)
    told(inspected(capsys, folder), tokens_per_image=tokens, problems=[])
    model, processor = load_pretrained(folder, dtype="float32")
    inputs = processor(images=Image.new("RGB", (60, 56), "red"), text="<image>\nHi", return_tensors="pt")
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == tokens
    with torch.no_grad():
        hidden = siglip(inputs["pixel_values"], output_hidden_states=True).hidden_states[-2]
        projected = model.model.multi_modal_projector(hidden[:, 16 - tokens :])
        features = model.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output[0]
        assert torch.allclose(features, projected[0], atol=1e-5)
        model(**inputs)
    assert main(["convert", str(folder), str(tmp_path / "native")]) == 0
    told(inspected(capsys, tmp_path / "native"), tokens_per_image=tokens, problems=[])
    assert main(["convert", str(tmp_path / "native"), str(tmp_path / "back"), "--to", "llava"]) == 0
    told(inspected(capsys, tmp_path / "back"), tokens_per_image=tokens, problems=[])
