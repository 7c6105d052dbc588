"""Adapters are plain PEFT over a native folder: all load them alike, only whole, and only over their base."""

import json
import shutil

import numpy as np
import pytest
import torch
from llava_reference import LORA, TOWER, VICUNA, all_logits
from peft import AutoPeftModel, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from llava_s2 import load_pretrained
from llava_s2.cli import main
from llava_s2.errors import InputError
from llava_s2.formats.base_record import FILE, BaseRecord, checksum, matches
from llava_s2.formats.create import save_native
from llava_s2.formats.lazy_tensors import lazy_tensors

SCALES = "56,112,168"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """What ``llava-s2 init`` makes of the language model and the tower."""
    folder = tmp_path_factory.mktemp("bases") / "base"
    flags = ["--llm", str(VICUNA), "--vision_tower", str(TOWER), "--s2_scales", SCALES]
    assert main(["init", str(folder), *flags]) == 0
    return folder


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    """An adapter over it, trained-looking, saved by PEFT alone, with the record that training leaves beside it."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("adapter")
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(
        r=4,
        target_modules=r".*language_model.*\.(q_proj|down_proj)",
        modules_to_save=["multi_modal_projector"],
        init_lora_weights=False,
    )
    adapted = get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.mul_(0.05)
    adapted.save_pretrained(str(folder))
    shutil.copy(base / FILE, folder / FILE)
    return folder, adapted.eval()


def changed(source, target, tensors):
    """A copy of an adapter with other tensors in it."""
    shutil.copytree(source, target)
    save_file(tensors, target / "adapter_model.safetensors", metadata={"format": "pt"})
    return target


def refused(*arguments, **options):
    with pytest.raises(InputError) as caught:
        load_pretrained(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_init_makes_what_assembling_the_parts_gives(base):
    found = load_file(base / "model.safetensors")
    llm, tower = load_file(VICUNA / "model.safetensors"), load_file(TOWER / "model.safetensors")
    for name, tensor in llm.items():  # 32,000 rows and one of <image>
        own = found[("" if name.startswith("lm_head") else "model.language_model.") + name.removeprefix("model.")]
        assert torch.equal(own[: tensor.shape[0]], tensor), name
    layer = "encoder.layers.0.self_attn.q_proj.weight"
    assert torch.equal(found[f"model.vision_tower.backbone.{layer}"], tower[f"vision_model.{layer}"])
    assert found["model.multi_modal_projector.linear_1.weight"].shape == (32, 96)


def test_everybody_loads_the_same_model(base, trained, golden):
    folder, adapted = trained
    processor = AutoProcessor.from_pretrained(base)
    wanted = all_logits(adapted, processor, golden, 2)
    stock = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    for model in (
        PeftModel.from_pretrained(stock, str(folder)).eval(),
        AutoPeftModel.from_pretrained(str(folder), dtype=torch.float32).eval(),
        load_pretrained(folder, dtype="float32")[0],
    ):
        np.testing.assert_allclose(all_logits(model, processor, golden, 2), wanted, atol=2e-6 * np.abs(wanted).max())


def test_an_adapter_of_peft_alone_has_its_bases_processor(base, trained, golden, tmp_path):
    """Without config.json, without a record, without a processor: what TRL and PEFT leave."""
    folder = shutil.copytree(trained[0], tmp_path / "plain", ignore=shutil.ignore_patterns(FILE))
    model, processor = load_pretrained(folder, dtype="float32")
    wanted = all_logits(trained[1], AutoProcessor.from_pretrained(base), golden, 1)
    np.testing.assert_allclose(all_logits(model, processor, golden, 1), wanted, atol=2e-6 * np.abs(wanted).max())


def test_another_base_is_refused_and_a_moved_one_found(base, trained, golden, tmp_path):
    folder = shutil.copytree(trained[0], tmp_path / "out" / "adapter")
    other, processor = load_pretrained(base, dtype="float32")
    other.model.language_model.layers[0].self_attn.q_proj.weight.data.mul_(1.001)
    save_native(other, processor, tmp_path / "other")
    assert "is another model" in refused(folder, tmp_path / "other")
    moved = shutil.copytree(base, tmp_path / "moved")
    settings = json.loads((folder / "adapter_config.json").read_text()) | {"base_model_name_or_path": "/is/gone"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    record = json.loads((folder / FILE).read_text()) | {"name": "/is/gone/too"}
    (folder / FILE).write_text(json.dumps(record))
    wanted = all_logits(trained[1], processor, golden, 1)

    def loads(*arguments):
        model, _ = load_pretrained(folder, *arguments, dtype="float32")
        np.testing.assert_allclose(all_logits(model, processor, golden, 1), wanted, atol=2e-6 * np.abs(wanted).max())

    loads()  # made again of the language model and the tower
    loads(VICUNA)
    loads(moved)
    (folder / FILE).write_text(json.dumps(record | {"parts": record["parts"] | {"llm": "/is/gone"}}))
    line = refused(folder)
    assert "/is/gone" in line and "--base" in line
    moved.rename(folder.parent / "base")  # where training leaves it
    loads()


def test_an_adapter_that_names_itself_as_its_base_is_refused(trained, tmp_path):
    folder = shutil.copytree(trained[0], tmp_path / "x")
    settings = json.loads((folder / "adapter_config.json").read_text()) | {"base_model_name_or_path": str(folder)}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    assert "names itself as the model it was trained on" in refused(folder)


def test_a_broken_adapter_is_refused_with_what_it_lacks_or_has_too_much(trained, tmp_path):
    tensors = load_file(trained[0] / "adapter_model.safetensors")
    half = {name: t for name, t in tensors.items() if "layers.1." not in name}
    line = refused(changed(trained[0], tmp_path / "half", half))
    assert "lacks" in line and "layers.1.mlp.down_proj.lora_A" in line
    blind = {name: t for name, t in tensors.items() if "projector" not in name}
    assert "multi_modal_projector.linear_1.bias" in refused(changed(trained[0], tmp_path / "blind", blind))
    more = tensors | {name.replace("layers.0", "layers.7"): t.clone() for name, t in tensors.items()}
    line = refused(changed(trained[0], tmp_path / "more", more))
    assert "no place for" in line and "layers.7.mlp.down_proj.lora_A" in line
    wide = {name: torch.cat([t, t]) if "lora_A" in name else t for name, t in tensors.items()}
    assert "does not fit" in refused(changed(trained[0], tmp_path / "wide", wide))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"lora_alpha": None}, r"adapter_config\.json: has no lora_alpha"),
        ({"r": None, "lora_alpha": None}, "has no r and no lora_alpha"),
        ({"peft_type": "FOO"}, "does not fit its base model"),
        ({"megatron_config": {"a": 1}}, "does not fit its base model"),
        ({"alora_invocation_tokens": [1, 2]}, "cannot be merged"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4 took a part .* drawn at random"),
        ({"base_model_name_or_path": "/is/gone"}, "/is/gone, is not there"),
    ],
)
def test_an_adapter_whose_config_is_half_broken_is_refused_in_a_line(trained, base, settings, told, tmp_path):
    folder = shutil.copytree(trained[0], tmp_path / "x")
    (folder / FILE).unlink()
    (tmp_path / "base").symlink_to(base)  # taken for its base only where a record says so
    config = json.loads((folder / "adapter_config.json").read_text()) | {"base_model_name_or_path": str(base)}
    config = {key: value for key, value in (config | settings).items() if value is not None}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=told) as error:
        load_pretrained(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("of_lora", "of_projector", "settings", "told"),
    [
        (lambda name, tensor: tensor * float("nan"), None, {}, "holds NaN or infinity"),
        (lambda name, tensor: tensor.to(torch.int8), None, {}, r"holds torch\.int8"),
        (lambda name, tensor: tensor[:2] if "q_proj.lora_A" in name else tensor, None, {}, "does not fit"),
        (lambda name, tensor: tensor, None, {"r": 2}, "does not fit its adapter_config.json"),
        (lambda name, tensor: tensor, None, {"lora_alpha": None}, "has no lora_alpha"),
        (lambda name, tensor: tensor, None, {"use_dora": True}, "lacks tensors.*lora_magnitude_vector"),
        (lambda name, tensor: tensor, None, {"modules_to_save": ["lm_head"]}, "does not fit"),
        (None, lambda name, tensor: tensor * float("inf"), {}, r"linear_1\.weight holds NaN or infinity"),
        (None, lambda name, tensor: tensor[:16] if name.endswith("2.weight") else tensor, {}, "gives 16 values"),
    ],
)
def test_a_half_broken_lora_of_llava_is_refused_in_a_line(of_lora, of_projector, settings, told, tmp_path):
    folder = shutil.copytree(LORA, tmp_path / "x")
    for file, change in (("adapter_model.bin", of_lora), ("non_lora_trainables.bin", of_projector)):
        tensors = torch.load(folder / file, weights_only=True)
        torch.save(
            {name: change(name, tensor) if change else tensor for name, tensor in tensors.items()}, folder / file
        )
    config = json.loads((folder / "adapter_config.json").read_text()) | settings
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=told) as error:
        load_pretrained(folder, VICUNA, vision_tower=TOWER)
    assert "\n" not in str(error.value)


def test_a_base_is_the_same_in_whatever_dtype_it_is_stored():
    generator = torch.Generator().manual_seed(0)
    names = ("model.language_model.layers.0.q.weight", "model.vision_tower.backbone.layers.0.weight")
    tensors = {name: torch.randn(8, 4, generator=generator) for name in names}
    wide = checksum(tensors)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert matches(wide, checksum({name: tensor.to(dtype) for name, tensor in tensors.items()}))
    tuned = {name: tensor * (1 + 1e-5) for name, tensor in tensors.items()}
    assert not matches(wide, checksum(tuned))
    renamed = {name.replace("q.weight", "k.weight"): tensor for name, tensor in tensors.items()}
    assert not matches(wide, checksum(renamed))


def test_the_record_is_of_the_folder(base):
    record = BaseRecord.load(str(base))
    assert record is not None and record.name == str(base) and record.parts["scales"] == [56, 112, 168]
    assert matches(record.checksum, checksum(lazy_tensors(str(base))))


def test_inspect_tells_of_an_adapter_by_its_base(base, trained, tmp_path, capsys):
    assert main(["inspect", str(trained[0]), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    told = {key: report[key] for key in ("kind", "base", "scales", "tokens_per_image", "problems")}
    wanted = {"kind": "adapter", "base": str(base), "scales": [56, 112, 168], "tokens_per_image": 16, "problems": []}
    assert told == wanted and report["projector"] == [[32, 96], [32, 32]]
    lost = shutil.copytree(trained[0], tmp_path / "lost", ignore=shutil.ignore_patterns(FILE))
    settings = json.loads((lost / "adapter_config.json").read_text()) | {"base_model_name_or_path": "/is/gone"}
    (lost / "adapter_config.json").write_text(json.dumps(settings))
    assert main(["inspect", str(lost)]) == 1
    assert "/is/gone" in capsys.readouterr().out


def test_the_lora_alone_is_the_same_model_on_its_base(base, trained, golden, tmp_path):
    folder, adapted = trained
    assert main(["convert", str(folder), str(tmp_path / "lora"), "--to", "lora"]) == 0
    stored = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert stored and all(".language_model." in name and ".lora_" in name for name in stored)
    assert json.loads((tmp_path / "lora" / "adapter_config.json").read_text())["modules_to_save"] is None
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    alone = PeftModel.from_pretrained(model, tmp_path / "lora").eval()
    processor = AutoProcessor.from_pretrained(base)
    assert np.abs(all_logits(alone, processor, golden) - all_logits(adapted, processor, golden)).max() == 0


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("multi_modal_projector.linear_1.weight", "holds projector.linear_1.weight"),
        ("vision_tower.backbone.encoder.layers.0.self_attn.q_proj.lora_A.weight", "q_proj.lora_A.weight"),
    ],
)
def test_an_adapter_of_more_than_the_language_model_is_not_written_as_lora_alone(trained, tmp_path, capsys, key, told):
    folder, _ = trained
    tensors = load_file(folder / "adapter_model.safetensors")
    name = f"base_model.model.model.{key}"
    tensors[name] = tensors.get(name, torch.zeros(4, 32)) + 0.5
    other = changed(folder, tmp_path / "other", tensors)
    assert main(["convert", str(other), str(tmp_path / "lora"), "--to", "lora"]) == 2
    error = capsys.readouterr().err
    assert told in error and "llava-s2 merge" in error and not (tmp_path / "lora").exists()


def test_the_lora_alone_wants_its_own_base(base, trained, tmp_path, capsys):
    folder, _ = trained
    for wrong, told in ((VICUNA, "a full checkpoint"), (LORA, "a full checkpoint")):
        assert main(["convert", str(folder), str(tmp_path / "lora"), "--to", "lora", "--base", str(wrong)]) == 2
        assert told in capsys.readouterr().err
    assert main(["convert", str(base), str(tmp_path / "lora"), "--to", "lora"]) == 2
    assert "takes a PEFT adapter" in capsys.readouterr().err
    assert main(["convert", str(folder), str(tmp_path / "lora"), "--to", "lora", "--dtype", "float16"]) == 2
    assert "leave all but --base out" in capsys.readouterr().err
