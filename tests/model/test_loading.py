"""Every kind of checkpoint against what the original LLaVA computes."""

import json
import shutil

import numpy as np
import pytest
import torch
from llava_reference import (
    FULL,
    LORA,
    PROJECTOR,
    TOWER,
    VICUNA,
    all_logits,
    copy_checkpoint,
    encode,
    reference_logits,
    shard,
)
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionModel, ConvNextConfig, ConvNextModel, LlamaForCausalLM, LlavaForConditionalGeneration

from llava_s2 import S2VisionModel, load_pretrained
from llava_s2.cli import main
from llava_s2.errors import InputError
from llava_s2.model.assemble import assemble
from llava_s2.model.processor import load_processor


@pytest.fixture(scope="module")
def full():
    return load_pretrained(FULL, vision_tower=TOWER, dtype="float32")


@pytest.fixture(scope="module")
def lora():
    return load_pretrained(LORA, VICUNA, vision_tower=TOWER, dtype="float32")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    return save_adapter(tmp_path_factory.mktemp("adapter"), TOWER, [56, 112, 168])


def save_adapter(folder, tower, scales, **options):
    """A trained-looking adapter folder as ``llava-s2 train finetune`` writes it, and the model it was saved from."""
    torch.manual_seed(0)
    model, processor = assemble(VICUNA, tower, scales, **options)
    config = LoraConfig(
        r=4,
        target_modules=r".*language_model.*\.(q_proj|down_proj)",
        modules_to_save=["multi_modal_projector"],
        init_lora_weights=False,
    )
    model.config.mm_vision_tower = str(tower)
    adapted = get_peft_model(model, config)
    adapted.peft_config["default"].base_model_name_or_path = str(VICUNA)
    adapted.save_pretrained(str(folder))
    adapted.get_base_model().config.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder, adapted.eval(), processor


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_computes_what_the_original_computes(kind, golden, request):
    model, processor = request.getfixturevalue(kind)
    assert isinstance(model, LlavaForConditionalGeneration) and not model.training
    for number, case in enumerate(golden["cases"]):
        inputs = encode(processor, case)
        prompt = inputs["input_ids"]
        np.testing.assert_allclose(
            inputs["pixel_values"][0], golden["expected"][f"pixel_values_{number}"], atol=1e-5, rtol=0
        )
        with torch.no_grad():
            logits = model(**inputs).logits[0, -1, :32000]
            written = model.generate(**inputs, max_new_tokens=8)[0, prompt.shape[1] :]
        np.testing.assert_allclose(logits, golden["expected"][f"logits_{kind}_{number}"], atol=1e-3, rtol=0)
        assert written.tolist() == case[f"greedy_{kind}"]
        losses = [option_loss(model, inputs, case["option_ids"][option]) for option in case["options"]]
        np.testing.assert_allclose(losses, case[f"option_losses_{kind}"], atol=1e-3, rtol=0)
        assert int(np.argmin(losses)) == case[f"option_chosen_{kind}"]


def option_loss(model, inputs, option):
    ids = torch.cat([inputs["input_ids"], torch.tensor([option])], dim=1)
    labels = ids.clone()
    labels[:, : inputs["input_ids"].shape[1]] = -100
    with torch.no_grad():
        return model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=inputs["pixel_values"],
            labels=labels,
        ).loss.item()


def test_the_tower_computes_the_original_features(full, golden):
    model, processor = full
    for number, case in enumerate(golden["cases"]):
        features = model.model.vision_tower(encode(processor, case)["pixel_values"]).last_hidden_state
        wanted = golden["expected"][f"vision_features_{number}"]
        np.testing.assert_allclose(features[0].detach(), wanted, atol=1e-4, rtol=0)


def test_a_lora_over_a_base_that_was_held_in_four_bits(golden, tmp_path):
    """QLoRA's config.json tells how training held the base; newer LLaVA saves the projector as safetensors."""
    held = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "quant_method": "bitsandbytes"}
    folder = copy_checkpoint(LORA, tmp_path / "x", quantization_config=held)
    (file,) = folder.glob("non_lora_trainables.bin")
    save_file(torch.load(file, weights_only=True), file.with_suffix(".safetensors"))
    file.unlink()
    model, processor = load_pretrained(folder, VICUNA, vision_tower=TOWER, dtype="float32")
    np.testing.assert_allclose(
        all_logits(model, processor, golden, 2)[:, :32000], reference_logits(golden, "lora")[:2], atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_sharded_files(suffix, golden, tmp_path):
    folder = shard(copy_checkpoint(FULL, tmp_path / "x"), suffix=suffix)
    model, processor = load_pretrained(folder, vision_tower=TOWER, dtype="float32")
    np.testing.assert_allclose(
        all_logits(model, processor, golden)[:, :32000], reference_logits(golden, "full"), atol=1e-3, rtol=0
    )


def test_projector_only_on_its_language_model(golden, tmp_path):
    folder = tmp_path / "stage1"
    folder.mkdir()
    (folder / "config.json").write_text((FULL / "config.json").read_text())
    (folder / "mm_projector.bin").write_bytes(PROJECTOR.read_bytes())
    got = load_pretrained(folder, VICUNA, vision_tower=TOWER, dtype="float32")
    # The same pieces as one full checkpoint: the language model's own file with the projector's tensors in it.
    whole = copy_checkpoint(FULL, tmp_path / "whole")
    tensors = load_file(VICUNA / "model.safetensors") | torch.load(PROJECTOR, weights_only=True)
    save_file(tensors, whole / "model.safetensors")
    wanted = load_pretrained(whole, vision_tower=TOWER, dtype="float32")
    np.testing.assert_array_equal(all_logits(*got, golden, 2), all_logits(*wanted, golden, 2))
    projector = got[0].model.multi_modal_projector.linear_1.weight
    assert torch.equal(projector, torch.load(PROJECTOR, weights_only=True)["model.mm_projector.0.weight"])


def test_tower_weights_inside_the_checkpoint_are_used(golden, tmp_path):
    folder = copy_checkpoint(FULL, tmp_path / "x", mm_vision_tower=str(tmp_path / "tower"))
    tower = load_file(TOWER / "model.safetensors")
    inside = {f"model.vision_tower.vision_tower.{name}": tensor for name, tensor in tower.items()}
    save_file(load_file(FULL / "model.safetensors") | inside, folder / "model.safetensors")
    other = copy_checkpoint(TOWER, tmp_path / "tower")
    save_file({name: torch.zeros_like(tensor) for name, tensor in tower.items()}, other / "model.safetensors")
    model, processor = load_pretrained(folder, dtype="float32")
    wanted = all_logits(model, processor, golden)
    np.testing.assert_allclose(wanted[:, :32000], reference_logits(golden, "full"), atol=1e-3, rtol=0)
    # Naming a tower, as an error about an unreachable one advises, does not replace the one inside.
    named, _ = load_pretrained(folder, vision_tower=other, dtype="float32")
    np.testing.assert_array_equal(all_logits(named, processor, golden, 2), wanted[:2])
    replaced, _ = load_pretrained(folder, vision_tower=other, replace_vision_tower=True, dtype="float32")
    assert not any(tensor.any() for tensor in replaced.model.vision_tower.parameters())


def test_own_full_checkpoint_round_trip(full, golden, tmp_path):
    model, processor = full
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, processor_again = load_pretrained(tmp_path)
    assert again.dtype == torch.float32
    np.testing.assert_array_equal(
        all_logits(again, processor_again, golden, 2), all_logits(model, processor, golden, 2)
    )
    assert processor_again.chat_template == processor.chat_template
    replaced, _ = load_pretrained(tmp_path, vision_tower=TOWER, replace_vision_tower=True)
    np.testing.assert_array_equal(all_logits(replaced, processor, golden, 2), all_logits(model, processor, golden, 2))


def test_own_adapter(adapter, golden):
    folder, saved, processor = adapter
    model, processor_again = load_pretrained(folder, dtype="float32")
    assert isinstance(model, LlavaForConditionalGeneration) and not isinstance(model, PeftModel)
    np.testing.assert_allclose(
        all_logits(model, processor_again, golden, 2), all_logits(saved, processor, golden, 2), atol=1e-4, rtol=0
    )


def test_own_adapter_on_a_convolutional_tower(golden, tmp_path):
    tower = tmp_path / "convnext"
    config = ConvNextConfig(image_size=64, hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 2, 1])
    ConvNextModel(config).save_pretrained(tower)
    shutil.copy(TOWER / "preprocessor_config.json", tower)
    folder, saved, processor = save_adapter(tmp_path / "adapter", tower, [64, 128], feature_layer=-1)
    model, processor_again = load_pretrained(folder, dtype="float32")
    assert model.config.vision_config.hidden_size == 2 * 24
    assert (encode(processor_again, golden["cases"][0])["input_ids"] == model.config.image_token_id).sum() == 4
    np.testing.assert_allclose(
        all_logits(model, processor_again, golden, 2), all_logits(saved, processor, golden, 2), atol=1e-4, rtol=0
    )
    other = tmp_path / "wider"
    ConvNextModel(ConvNextConfig(image_size=64, hidden_sizes=[8, 12, 16, 32], depths=[1, 1, 1, 1])).save_pretrained(
        other
    )
    with pytest.raises(InputError, match="its features are 32 wide, the checkpoint's are 24"):
        load_pretrained(folder, vision_tower=other, replace_vision_tower=True)


def test_own_adapter_on_a_llava_checkpoint(golden, full, tmp_path):
    torch.manual_seed(1)
    base, processor = tmp_path / "base", full[1]
    full[0].save_pretrained(base)
    processor.save_pretrained(base)
    config = LoraConfig(r=2, target_modules=r".*language_model.*\.v_proj", init_lora_weights=False)
    adapted = get_peft_model(load_pretrained(base)[0], config)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    adapted.get_base_model().config.save_pretrained(tmp_path / "adapter")
    processor.save_pretrained(tmp_path / "adapter")
    model, processor_again = load_pretrained(tmp_path / "adapter", base)
    np.testing.assert_allclose(
        all_logits(model, processor_again, golden, 2), all_logits(adapted, processor, golden, 2), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("kind", ["lora", "own"])
def test_merge_makes_one_plain_checkpoint_with_the_same_logits(kind, golden, adapter, tmp_path, request):
    if kind == "lora":
        arguments = [str(LORA), str(tmp_path / "merged"), "--base", str(VICUNA), "--vision_tower", str(TOWER)]
        wanted = all_logits(*request.getfixturevalue("lora"), golden, 2)
    else:
        arguments = [str(adapter[0]), str(tmp_path / "merged")]
        wanted = all_logits(*load_pretrained(adapter[0], dtype="float32"), golden, 2)
    assert main(["merge", *arguments]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merged"]
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    stock = LlavaForConditionalGeneration.from_pretrained(tmp_path / "merged")  # needs nothing of this project's loader
    np.testing.assert_allclose(
        all_logits(stock, load_processor(tmp_path / "merged"), golden, 2), wanted, atol=1e-5, rtol=0
    )


def test_merging_a_bfloat16_adapter_into_a_float16_base_rounds_nothing(adapter, golden, tmp_path):
    folder = copy_checkpoint(adapter[0], tmp_path / "half")
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({name: t.bfloat16() for name, t in tensors.items()}, folder / "adapter_model.safetensors")
    assert {t.dtype for t in load_file(VICUNA / "model.safetensors").values()} == {torch.float16}
    assert main(["merge", str(folder), str(tmp_path / "merged")]) == 0
    merged, processor = load_pretrained(tmp_path / "merged")
    assert merged.dtype == torch.float32
    wanted = all_logits(*load_pretrained(folder, dtype="float32"), golden, 2)
    np.testing.assert_allclose(all_logits(merged, processor, golden, 2), wanted, atol=1e-5, rtol=0)


def single_scale(folder, target, **changes):
    """A LLaVA-format single-scale checkpoint: the reference's with a projector of one scale's width."""
    folder = copy_checkpoint(folder, target, s2=None, s2_scales=None, mm_hidden_size=32, **changes)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.mm_projector.0.weight"] = tensors["model.mm_projector.0.weight"][:, :32].contiguous()
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("layer", [-2, -1, 1])
@pytest.mark.parametrize("feature", ["patch", "cls_patch"])
def test_single_scale_checkpoints_take_the_layer_and_tokens_that_the_config_names(layer, feature, tmp_path, golden):
    changes = {"mm_vision_select_layer": layer, "mm_vision_select_feature": feature}
    folder = single_scale(FULL, tmp_path / "x", **changes)
    model, processor = load_pretrained(folder, vision_tower=TOWER, dtype="float32")
    inputs = encode(processor, golden["cases"][1])
    # By hand: CLIP's hidden state, the projector, the language model on embeddings.
    hidden = CLIPVisionModel.from_pretrained(TOWER)(inputs["pixel_values"], output_hidden_states=True).hidden_states
    features = hidden[layer][0] if feature == "cls_patch" else hidden[layer][0, 1:]
    tensors = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    first, second = (
        (tensors[f"model.mm_projector.{i}.weight"], tensors[f"model.mm_projector.{i}.bias"]) for i in (0, 2)
    )
    tokens = torch.nn.functional.gelu(features @ first[0].T + first[1]) @ second[0].T + second[1]
    before, after = (inputs["input_ids"][0].tolist() for _ in range(2))
    image = model.config.image_token_id
    before, after = before[: before.index(image)], after[len(after) - after[::-1].index(image) :]
    embed = tensors["model.embed_tokens.weight"]
    language_model = LlamaForCausalLM.from_pretrained(VICUNA, dtype=torch.float32)
    language_model.load_state_dict({name: t for name, t in tensors.items() if "mm_projector" not in name})
    with torch.no_grad():
        wanted = language_model(inputs_embeds=torch.cat([embed[before], tokens, embed[after]])[None]).logits[0, -1]
        got = model(**inputs).logits[0, -1, :32000]
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=0)


def test_linear_projector_is_the_stock_one_without_its_second_layer(tmp_path, golden, full):
    folder = copy_checkpoint(FULL, tmp_path / "x", mm_projector_type="linear")
    tensors = load_file(folder / "model.safetensors")
    linear = {kind: tensors[f"model.mm_projector.0.{kind}"] for kind in ("weight", "bias")}
    kept = {name: tensor for name, tensor in tensors.items() if "mm_projector" not in name}
    save_file(
        kept | {f"model.mm_projector.{kind}": tensor for kind, tensor in linear.items()},
        folder / "model.safetensors",
    )
    model, processor = load_pretrained(folder, vision_tower=TOWER, dtype="float32")
    pixel_values = encode(processor, golden["cases"][0])["pixel_values"]
    with torch.no_grad():
        features = full[0].model.vision_tower(pixel_values).last_hidden_state
        got = model.get_image_features(pixel_values).pooler_output[0]
    wanted = features[0] @ linear["weight"].float().T + linear["bias"].float()
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)


def test_hugging_face_single_scale_loads_as_it_is(tmp_path, golden):
    """Kind 5: saved by stock transformers with stock classes alone."""
    source = load_pretrained(single_scale(FULL, tmp_path / "x"), vision_tower=TOWER, dtype="float32")
    source[0].save_pretrained(tmp_path / "hf")
    source[1].save_pretrained(tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["vision_config"]["model_type"] == "clip_vision_model"
    model, processor = load_pretrained(tmp_path / "hf")
    assert not isinstance(model.model.vision_tower, S2VisionModel)
    np.testing.assert_array_equal(all_logits(model, processor, golden, 2), all_logits(*source, golden, 2))


def test_dtype_is_the_checkpoints_unless_named():
    assert load_pretrained(FULL, vision_tower=TOWER)[0].dtype == torch.float16
    assert load_pretrained(FULL, vision_tower=TOWER, dtype=torch.bfloat16)[0].dtype == torch.bfloat16


def test_the_placeholder_is_never_the_answer(full):
    model, _ = full
    assert model.config.image_token_id == 32000
    directions = torch.randn(500, model.config.text_config.hidden_size, generator=torch.Generator().manual_seed(0))
    logits = model.lm_head(torch.cat([directions, -directions]))
    assert (logits.argmax(-1) != 32000).all()
    # Its share of the probability is below 1 / V, so no other token's log-probability falls by more than that.
    lost = torch.logsumexp(logits, -1) - torch.logsumexp(logits[:, :32000], -1)
    assert lost.max() < 1.01 / 32000


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("quantization", ["int8", "int8-all"])
def test_int8_on_a_cpu(quantization, kind, golden):
    base = VICUNA if kind == "lora" else None
    if not torch.cpu._is_vnni_supported():
        with pytest.raises(InputError, match=f"quantization={quantization}: int8 needs an x86 processor with VNNI"):
            load_pretrained(FULL, vision_tower=TOWER, quantization=quantization)
        return
    model, processor = load_pretrained(
        FULL if base is None else LORA, base, vision_tower=TOWER, dtype="float32", quantization=quantization
    )
    whole = {part for part in ("language_model", "vision_tower", "multi_modal_projector") if has_linear(model, part)}
    assert whole == (set() if quantization == "int8-all" else {"vision_tower", "multi_modal_projector"})
    assert type(model.lm_head) is torch.nn.Linear
    for number, case in enumerate(golden["cases"]):
        with torch.inference_mode():
            logits = model(**encode(processor, case)).logits[0, -1, :32000]
        wanted = torch.from_numpy(golden["expected"][f"logits_{kind}_{number}"])
        assert (logits - wanted).norm() < 0.05 * wanted.norm()


def has_linear(model, part):
    return any(type(layer) is torch.nn.Linear for layer in getattr(model.model, part).modules())
