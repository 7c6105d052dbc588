"""Packed frozen weights: the same results and gradients, and a checkpoint that is what it was."""

import copy
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionConfig,
    CLIPVisionModel,
    ConvNextConfig,
    ConvNextModel,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    LlamaForCausalLM,
)

from llava_s2.s2 import S2VisionModel
from llava_s2.s2.packed_linear import SWITCH, PackedLinear, pack_frozen, prepare

VIT = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 56, "patch_size": 14}
TOKENS = torch.arange(2 * 9).view(2, 9)


@pytest.fixture(autouse=True)
def packed_on_every_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "1")


def towers() -> dict[str, S2VisionModel]:
    torch.manual_seed(0)
    clip = CLIPVisionModel(CLIPVisionConfig(**VIT, intermediate_size=128, initializer_factor=3.0))
    dino = Dinov2Model(Dinov2Config(**VIT, mlp_ratio=2, initializer_range=0.1))
    conv = ConvNextModel(ConvNextConfig(depths=[1, 1, 1, 1], hidden_sizes=[16, 16, 32, 64], image_size=64))
    return {
        "clip": S2VisionModel.wrap(clip.eval(), [56, 112, 168]),
        "dinov2": S2VisionModel.wrap(dino.eval(), [56, 112], feature_layer=-1),
        "convnext": S2VisionModel.wrap(conv.eval(), [64, 128], feature_layer=-1),
    }


def llama(tied: bool = True) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, tie_word_embeddings=tied)).eval()


def images(tower: S2VisionModel) -> Tensor:
    return torch.randn(2, 3, tower.config.image_size, tower.config.image_size, generator=torch.manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["clip", "dinov2", "convnext"])
def test_a_packed_tower_gives_the_same_and_saves_the_same(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    tower = towers()[family].to(dtype)
    limit = 2e-5 if dtype == torch.float32 else 0.1
    with torch.no_grad():
        expected = tower(images(tower)).last_hidden_state
        packed = prepare(prepare(copy.deepcopy(tower)))  # twice is once
        assert dtype != torch.float32 or not any(type(module) is nn.Linear for module in packed.modules())
        for model in (packed, copy.deepcopy(packed)):
            found = model(images(tower)).last_hidden_state
            assert (found - expected).norm() <= limit * expected.norm()
    packed.save_pretrained(tmp_path)
    saved = S2VisionModel.from_pretrained(tmp_path, dtype=dtype).state_dict()
    assert all(torch.equal(saved[name], value) for name, value in tower.state_dict().items())
    assert sum(p.numel() for p in packed.parameters()) == sum(p.numel() for p in tower.parameters())


@pytest.mark.parametrize("family", ["clip", "dinov2"])
def test_a_packed_tower_takes_the_weights_of_a_checkpoint(family: str) -> None:
    first = towers()[family]
    other = copy.deepcopy(first)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
        packed = prepare(first)
        packed(images(other))
        assert packed.load_state_dict(other.state_dict()).missing_keys == []
        expected = other(images(other)).last_hidden_state
        torch.testing.assert_close(packed(images(other)).last_hidden_state, expected, atol=2e-5, rtol=2e-5)
    with pytest.raises(RuntimeError, match="Missing key"):
        packed.load_state_dict({})


def test_gradients_reach_a_lora_and_the_input_through_packed_layers() -> None:
    def run(packed: bool) -> tuple[Tensor, dict[str, Tensor]]:
        torch.manual_seed(1)
        model = get_peft_model(llama(), LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
        if packed:
            pack_frozen(model)
            assert sum(isinstance(module, PackedLinear) for module in model.modules()) == 14
        model.enable_input_require_grads()
        loss = model(input_ids=TOKENS, labels=TOKENS).loss
        loss.backward()
        loss = model(input_ids=TOKENS, labels=TOKENS).loss  # and again, over the packed transposes
        loss.backward()
        return loss, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    (loss, gradients), (packed_loss, packed_gradients) = run(False), run(True)
    torch.testing.assert_close(packed_loss, loss)
    assert gradients.keys() == packed_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(packed_gradients[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("tied", [True, False])
def test_a_packed_language_model_generates_and_saves_the_same(tied: bool, tmp_path: Path) -> None:
    model = llama(tied)
    packed = pack_frozen(copy.deepcopy(model).requires_grad_(False))
    assert isinstance(packed.lm_head, PackedLinear) != tied  # a tied head is the embedding's
    options = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(packed.generate(TOKENS, **options), model.generate(TOKENS, **options))
    packed.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert all(torch.equal(again.state_dict()[name], value) for name, value in model.state_dict().items())


def test_what_learns_stays_and_one_switch_turns_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    assert not any(isinstance(module, PackedLinear) for module in pack_frozen(model).modules())
    monkeypatch.setenv(SWITCH, "0")
    pack_frozen(model.requires_grad_(False))
    assert not any(isinstance(module, PackedLinear) for module in model.modules())


def test_a_tower_that_learns_is_refused() -> None:
    with pytest.raises(ValueError, match="eval"):
        prepare(towers()["clip"].train())


def test_what_would_be_lost_is_refused() -> None:
    with pytest.raises(ValueError, match="stay in float32"):
        prepare(towers()["clip"]).to(torch.bfloat16)
