"""Backbones of open_clip and timm: their features against the libraries' own, and what a saved tower keeps."""

import copy
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    AutoModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SwinConfig,
    TimmWrapperConfig,
    TimmWrapperModel,
)

from llava_s2.s2 import S2VisionConfig, S2VisionModel
from llava_s2.towers.timm_tower import as_pretrained

OPEN_CLIP: dict[str, dict[str, Any]] = {
    "plain": {},
    "quick_gelu": {"quick_gelu": True},
    "layer_scale_no_pre_norm": {"ls_init_value": 0.5, "no_ln_pre": True},
    "tanh_gelu_and_eps": {"act_kwargs": {"approximate": "tanh"}, "norm_kwargs": {"eps": 1e-3}},
    "patch_dropout_and_attention_pool": {"patch_dropout": 0.5, "attentional_pool": True, "attn_pooler_heads": 2},
}
TIMM = ["test_vit", "test_vit3", "test_convnext", "test_resnet"]


def open_clip_model(quick_gelu: bool = False, **vision: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"image_size": 24, "patch_size": 6, "width": 32, "layers": 3, "head_width": 16}
    text = {"context_length": 4, "vocab_size": 8, "width": 16, "heads": 2, "layers": 1}
    return open_clip.CLIP(8, {**sizes, **vision}, text, quick_gelu=quick_gelu).eval()


def timm_model(name: str = "test_vit", **options: Any) -> Any:
    torch.manual_seed(0)
    model = timm.create_model(name, **options).eval()
    with torch.no_grad():  # timm starts layer scale and the like at values that hide a block
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def whole_maps(features_of: Any, x: Tensor, base: int, scales: list[int]) -> Tensor:
    """S2 features, one tile at a time, whole maps, from a function that gives the map (n, D, h, w) of a tile."""
    maps = []
    for side in scales:
        image = F.interpolate(x, size=side, mode="bicubic")
        steps = range(0, side, base)
        lines = [torch.cat([features_of(image[:, :, i : i + base, j : j + base]) for j in steps], dim=3) for i in steps]
        maps.append(torch.cat(lines, dim=2))
    size = maps[0].shape[2:]
    return torch.cat([F.interpolate(m, size=size, mode="area") for m in maps], dim=1).flatten(2).transpose(1, 2)


def saved_and_loaded(tower: S2VisionModel, folder: Path) -> Any:
    tower.save_pretrained(folder)
    loaded, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return loaded


@pytest.mark.parametrize("kind", OPEN_CLIP)
@torch.no_grad()
def test_open_clip(kind: str, tmp_path: Path) -> None:
    clip = open_clip_model(**OPEN_CLIP[kind])
    seen: list[Tensor] = []
    handle = clip.visual.transformer.resblocks[1].register_forward_hook(lambda *args: seen.append(args[-1]))

    def second_of_three(tile: Tensor) -> Tensor:
        clip.encode_image(tile)
        return seen.pop()[:, 1:].transpose(1, 2).unflatten(2, (4, 4))

    x = torch.randn(2, 3, 72, 72)
    expected = whole_maps(second_of_three, x, 24, [24, 48, 72])
    handle.remove()
    tower = S2VisionModel.wrap(clip, scales=[24, 48, 72])
    torch.testing.assert_close(tower(x).last_hidden_state, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tower.train()(x).last_hidden_state, expected, rtol=1e-5, atol=1e-5)
    assert not [name for name in tower.state_dict() if "resblocks.2" in name or "pool" in name or "ln_post" in name]
    loaded = saved_and_loaded(tower.eval(), tmp_path)
    assert torch.equal(loaded(x).last_hidden_state, tower(x).last_hidden_state)


@pytest.mark.parametrize("name", TIMM)
@torch.no_grad()
def test_timm(name: str, tmp_path: Path) -> None:
    model = timm_model(name)
    base = model.pretrained_cfg["input_size"][-1]
    info = [dict(model.feature_info[index]) for index in range(len(model.feature_info))]
    in_stages = len({entry["reduction"] for entry in info}) > 1
    index = len(info) - (1 if in_stages else 2)

    def features(tile: Tensor) -> Tensor:
        return model.forward_intermediates(tile, norm=False, intermediates_only=True)[index]

    x = torch.randn(1, 3, 2 * base, 2 * base)
    expected = whole_maps(features, x, base, [base, 2 * base])
    tower = S2VisionModel.wrap(model, scales=[base, 2 * base])
    torch.testing.assert_close(tower(x).last_hidden_state, expected, rtol=1e-4, atol=1e-4)
    assert tower.config.hidden_size == expected.shape[2]
    assert tower.config.num_image_tokens == expected.shape[1]
    loaded = saved_and_loaded(tower, tmp_path)
    assert torch.equal(loaded(x).last_hidden_state, tower(x).last_hidden_state)


@torch.no_grad()
def test_timm_models_made_with_arguments(tmp_path: Path) -> None:
    """Swin, whose maps have channels last and whose buffers are in no checkpoint."""
    options = {"depths": (1, 2), "num_heads": (2, 4), "embed_dim": 16, "window_size": 4, "img_size": 32}
    name = "swin_tiny_patch4_window7_224"
    model = timm_model(name, **options)
    with pytest.raises(ValueError, match=r"would not build this swin_tiny.* again"):
        S2VisionModel.wrap(model, scales=[32, 64])
    wrapped = TimmWrapperModel(TimmWrapperConfig(architecture=name, model_args=options)).eval()
    wrapped.timm_model.load_state_dict(model.state_dict(), strict=False)

    def features(tile: Tensor) -> Tensor:
        return model.forward_intermediates(tile, norm=False, intermediates_only=True)[-1]

    x = torch.randn(2, 3, 64, 64)
    expected = whole_maps(features, x, 32, [32, 64])
    tower = S2VisionModel.wrap(wrapped, scales=[32, 64])
    torch.testing.assert_close(tower(x).last_hidden_state, expected, rtol=1e-4, atol=1e-4)
    loaded = saved_and_loaded(tower, tmp_path)
    assert torch.equal(loaded(x).last_hidden_state, tower(x).last_hidden_state)


@torch.no_grad()
def test_a_timm_size_is_found_out_and_whole_images_run_where_the_model_takes_them() -> None:
    model = timm_model(img_size=96, dynamic_img_size=True)
    x = torch.randn(1, 3, 192, 192)
    whole = model.forward_intermediates(x, norm=False, intermediates_only=True)[-2]
    tower = S2VisionModel.wrap(model, scales=[96, 192], split=False)
    got = tower(x).last_hidden_state[..., 64:]
    torch.testing.assert_close(got, F.avg_pool2d(whole, 2).flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"tiles of 448 pixels .* dynamic_img_size"):
        config = TimmWrapperConfig(architecture="vit_tiny_patch16_224")
        S2VisionConfig(backbone_config=config, scales=[224, 448], split=False)


@pytest.mark.parametrize(("name", "grid"), [("test_efficientnet", 2), ("test_convnext", 1), ("swin", 2)])
@torch.no_grad()
def test_a_side_that_the_stride_does_not_divide(name: str, grid: int) -> None:
    """48 pixels at stride 32: nets that pad have a feature for the rest, others drop it."""
    if name == "swin":
        sizes = {"image_size": 48, "embed_dim": 8, "depths": [1] * 4, "num_heads": [2] * 4, "window_size": 2}
        model = AutoModel.from_config(SwinConfig(**sizes)).eval()
        stock = copy.deepcopy(model)
    else:
        stock = timm_model(name)
        model = as_pretrained(copy.deepcopy(stock))
        model.config.image_size = 48

    def features(tile: Tensor) -> Tensor:
        if name == "swin":
            return stock(tile, output_hidden_states=True).reshaped_hidden_states[-1]
        return stock.forward_intermediates(tile, norm=False, intermediates_only=True)[-1]

    x = torch.randn(1, 3, 96, 96)
    expected = whole_maps(features, x, 48, [48, 96])
    tower = S2VisionModel.wrap(model, scales=[48, 96])
    assert tower.config.num_image_tokens == grid**2
    torch.testing.assert_close(tower(x).last_hidden_state, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [open_clip_model, timm_model])
@torch.no_grad()
def test_half_precision(make: Any, half: torch.dtype) -> None:
    size = 24 if make is open_clip_model else 160
    tower = S2VisionModel.wrap(make(), scales=[size, 2 * size])
    x = torch.randn(1, 3, 2 * size, 2 * size)
    expected = tower(x).last_hidden_state
    out = tower.to(half)(x.to(half)).last_hidden_state
    assert out.dtype == half
    assert F.cosine_similarity(out.float(), expected, dim=-1).min() > 0.99


@pytest.mark.parametrize("make", [open_clip_model, timm_model])
def test_a_llava_around_it_learns_and_loads_again(make: Any, tmp_path: Path) -> None:
    base = 24 if make is open_clip_model else 160
    tower = S2VisionModel.wrap(make(), scales=[base, 2 * base])
    tokens = tower.config.num_image_tokens
    text = LlamaConfig(vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=text,
        image_token_index=39,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_seq_length=tokens,
    )
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.train().enable_input_require_grads()
    model.gradient_checkpointing_enable()
    batch = {
        "input_ids": torch.tensor([[1, *[39] * tokens, 5, 6]]),
        "pixel_values": torch.randn(1, 3, 2 * base, 2 * base),
    }
    model(**batch, labels=batch["input_ids"]).loss.backward()
    gradients = [p.grad for p in model.model.vision_tower.parameters() if p.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)
    model.eval().save_pretrained(tmp_path)
    loaded = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)
        features = loaded.model.vision_tower(batch["pixel_values"]).last_hidden_state
        torch.testing.assert_close(features, tower(batch["pixel_values"]).last_hidden_state)


def test_a_model_of_no_library_is_refused() -> None:
    with pytest.raises(ValueError, match="Conv2d is no model of transformers, or of open_clip or timm"):
        S2VisionModel.wrap(torch.nn.Conv2d(3, 3, 1), scales=[24])
