"""The S2 vision tower: features of every backbone family, and what any PreTrainedModel must do."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    ConvNextConfig,
    Dinov2Backbone,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    DINOv3ConvNextConfig,
    DINOv3ViTConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    SiglipVisionConfig,
    SwinConfig,
    ViTConfig,
    ViTMAEConfig,
)

from llava_s2.s2 import S2VisionConfig, S2VisionModel

GOLDEN = Path(__file__).parents[1] / "golden" / "llava_tiny"
VIT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 24,
    "patch_size": 6,
    "initializer_range": 0.3,
}
# family -> config, number of prefix tokens, pixels per feature when the last block is taken
FAMILIES: dict[str, tuple[PreTrainedConfig, int]] = {
    "clip": (CLIPVisionConfig(**VIT, initializer_factor=5.0), 1),
    "siglip": (SiglipVisionConfig(**VIT), 0),
    "dinov2": (Dinov2Config(**VIT, mlp_ratio=2), 1),
    "dinov2_with_registers": (Dinov2WithRegistersConfig(**VIT, mlp_ratio=2, num_register_tokens=4), 5),
    "vit": (ViTConfig(**VIT), 1),
    "dinov3": (DINOv3ViTConfig(**VIT, num_register_tokens=2), 3),
    "vit_mae": (ViTMAEConfig(**VIT, decoder_hidden_size=16, decoder_num_attention_heads=2), 1),
    "swin": (
        SwinConfig(
            image_size=32,
            patch_size=2,
            embed_dim=8,
            depths=[1, 2, 1],
            num_heads=[1, 2, 2],
            window_size=4,
            initializer_range=0.3,
        ),
        0,
    ),
    "dinov3_convnext": (
        DINOv3ConvNextConfig(depths=[1, 1, 2, 1], hidden_sizes=[8, 8, 16, 24], image_size=64, initializer_range=0.3),
        0,
    ),
    "convnext": (
        ConvNextConfig(
            depths=[1, 1, 2, 1], hidden_sizes=[8, 8, 16, 24], image_size=64, patch_size=4, initializer_range=0.3
        ),
        0,
    ),
}
LAYERS = [-2, -1, 1, 0]


def build(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModel.from_config(FAMILIES[family][0]).eval()


def block_output(backbone: PreTrainedModel, layer: int, tile: Tensor) -> Tensor:
    """The stock model's hidden_states[layer]."""
    options = {}
    if isinstance(backbone.config, ViTMAEConfig):  # all patches, in their order
        backbone.config.mask_ratio = 0.0
        options["noise"] = torch.arange((tile.shape[-1] // 6) ** 2.0).expand(len(tile), -1)
    with torch.no_grad():
        return backbone(tile, output_hidden_states=True, **options).hidden_states[layer]


def reference(backbone: PreTrainedModel, layer: int, prefix: int, x: Tensor, base: int, scales: list[int]) -> Tensor:
    """S2 features (B, N, D * scales), one tile at a time, whole maps, from the stock and whole backbone."""
    maps = []
    for side in scales:
        image = F.interpolate(x, size=side, mode="bicubic")
        lines = []
        for top in range(0, side, base):
            line = []
            for left in range(0, side, base):
                out = block_output(backbone, layer, image[:, :, top : top + base, left : left + base])
                if out.dim() == 3:
                    out = out[:, prefix:].transpose(1, 2)
                    grid = int(out.shape[2] ** 0.5)
                    out = out.unflatten(2, (grid, grid))
                line.append(out)
            lines.append(torch.cat(line, dim=3))
        maps.append(torch.cat(lines, dim=2))
    size = maps[0].shape[2:]
    return torch.cat([F.interpolate(m, size=size, mode="area") for m in maps], dim=1).flatten(2).transpose(1, 2)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_features_of_every_family(family: str, layer: int) -> None:
    config, prefix = FAMILIES[family]
    base = config.image_size
    scales = [base, 2 * base, 3 * base]
    x = torch.randn(2, 3, scales[-1], scales[-1])
    backbone = build(family)
    expected = reference(backbone, layer, prefix, x, base, scales)
    total = sum(p.numel() for p in backbone.parameters())

    if (family, layer) == ("dinov3_convnext", 0):
        with pytest.raises(ValueError, match="does not hand out its embeddings"):
            S2VisionModel.wrap(backbone, scales, feature_layer=layer)
        return
    tower = S2VisionModel.wrap(backbone, scales, feature_layer=layer)
    with torch.no_grad():
        out = tower(x)
    torch.testing.assert_close(out.last_hidden_state, expected, rtol=1e-5, atol=1e-5)
    assert out.hidden_states[-1] is out.last_hidden_state
    assert (
        tower.config.num_image_tokens == expected.shape[1] == (tower.config.image_size // tower.config.patch_size) ** 2
    )
    assert tower.config.hidden_size == expected.shape[2]
    assert not tower.training
    assert sum(p.numel() for p in tower.parameters()) < total  # at the least, the final norm is gone


@pytest.mark.parametrize("family", FAMILIES)
def test_save_and_load(family: str, tmp_path: Path) -> None:
    base = FAMILIES[family][0].image_size
    tower = S2VisionModel.wrap(build(family), [base, 2 * base], max_tiles_per_call=3)
    tower.save_pretrained(tmp_path)
    loaded, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(loaded, S2VisionModel)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert loaded.config.scales == [base, 2 * base]
    assert loaded.config.max_tiles_per_call == 3
    x = torch.randn(1, 3, 2 * base, 2 * base)
    assert torch.equal(loaded(x).last_hidden_state, tower(x).last_hidden_state)


@pytest.mark.parametrize("case", range(4))
def test_golden_features(case: int) -> None:
    """Features of the original LLaVA's S2 tower on the same weights and pixels."""
    expected = np.load(GOLDEN / "expected.npz")
    clip = CLIPVisionModel.from_pretrained(GOLDEN / "clip-tiny", dtype=torch.float32)
    tower = S2VisionModel.wrap(clip, [56, 112, 168])
    out = tower(torch.from_numpy(expected[f"pixel_values_{case}"])[None]).last_hidden_state[0]
    np.testing.assert_allclose(out.detach().numpy(), expected[f"vision_features_{case}"], rtol=0, atol=1e-4)


def tiny_clip(**changes: object) -> CLIPVisionConfig:
    return CLIPVisionConfig(**{**VIT, "initializer_factor": 5.0, **changes})


def tiny_llava(**changes: object) -> LlavaForConditionalGeneration:
    torch.manual_seed(0)
    vision = S2VisionConfig(backbone_config=tiny_clip(), scales=[24, 48, 72], **changes)
    text = LlamaConfig(vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=39,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_seq_length=vision.num_image_tokens,
    )
    return LlavaForConditionalGeneration(config).eval()


LLAVA_INPUT = {"input_ids": torch.tensor([[1, *[39] * 16, 5, 6]]), "pixel_values": torch.randn(1, 3, 72, 72)}


def test_stock_llava_takes_the_features(tmp_path: Path) -> None:
    model = tiny_llava()
    projector = model.model.multi_modal_projector
    assert projector.linear_1.in_features == 48
    with torch.no_grad():
        features = model.model.vision_tower(LLAVA_INPUT["pixel_values"]).last_hidden_state
        out = model(**LLAVA_INPUT)
        torch.testing.assert_close(out.image_hidden_states.flatten(0, -2), projector(features)[0])
        model.save_pretrained(tmp_path)
        loaded = LlavaForConditionalGeneration.from_pretrained(tmp_path)
        assert isinstance(loaded.model.vision_tower, S2VisionModel)
        assert loaded.config.vision_config.scales == [24, 48, 72]
        assert torch.equal(loaded(**LLAVA_INPUT).logits, out.logits)
        generated = model.generate(**LLAVA_INPUT, max_new_tokens=3, do_sample=False)
    assert generated.shape == (1, 22)


def test_a_frozen_tower_records_nothing_and_the_projector_learns() -> None:
    model = tiny_llava().train()
    tower = model.model.vision_tower.requires_grad_(False)
    model.enable_input_require_grads()  # what PEFT does when gradients are checkpointed
    assert not tower(LLAVA_INPUT["pixel_values"]).last_hidden_state.requires_grad
    model(**LLAVA_INPUT, labels=LLAVA_INPUT["input_ids"]).loss.backward()
    assert all(p.grad is None for p in tower.parameters())
    assert model.model.multi_modal_projector.linear_1.weight.grad.abs().sum() > 0


def test_gradients_reach_the_backbone_and_checkpointing_changes_none() -> None:
    def gradients(checkpointing: bool) -> dict[str, Tensor]:
        model = tiny_llava().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert model.model.vision_tower.backbone.encoder.layers[0].gradient_checkpointing
        model(**LLAVA_INPUT, labels=LLAVA_INPUT["input_ids"]).loss.backward()
        return {name: p.grad for name, p in model.model.vision_tower.named_parameters()}

    plain, checkpointed = gradients(False), gradients(True)
    assert plain["backbone.embeddings.patch_embedding.weight"].abs().sum() > 0
    for name, grad in plain.items():
        torch.testing.assert_close(checkpointed[name], grad)


def test_pixel_gradients_through_a_frozen_tower() -> None:
    tower = S2VisionModel(S2VisionConfig(backbone_config=tiny_clip(), scales=[24, 48])).requires_grad_(False)
    pixels = torch.randn(1, 3, 48, 48, requires_grad=True)
    tower(pixels).last_hidden_state.sum().backward()
    assert pixels.grad is not None
    assert pixels.grad.abs().sum() > 0


def test_only_the_needed_blocks_run_and_are_kept() -> None:
    config = S2VisionConfig(backbone_config=tiny_clip(num_hidden_layers=5), scales=[24, 48], feature_layer=-3)
    tower = S2VisionModel(config)
    ran = []
    for index, layer in enumerate(tower.backbone.encoder.layers):
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
    tower(torch.randn(1, 3, 48, 48))
    assert ran == [0, 1, 2]
    assert not [key for key in tower.state_dict() if "layers.3" in key or "post_layernorm" in key]
    assert tower.config.backbone_config.num_hidden_layers == 5  # so that -3 keeps its meaning when loaded


def test_a_cut_backbone_can_be_wrapped_again() -> None:
    x = torch.randn(1, 3, 48, 48)
    tower = S2VisionModel.wrap(build("clip"), [24, 48])
    again = S2VisionModel.wrap(tower.backbone, [24, 48])
    assert torch.equal(again(x).last_hidden_state, tower(x).last_hidden_state)
    with pytest.raises(ValueError, match="no list of 3 blocks"):
        S2VisionModel.wrap(tower.backbone, [24, 48], feature_layer=-1)


@pytest.mark.parametrize("kind", [CLIPModel, CLIPVisionModelWithProjection])
def test_the_vision_model_is_found_inside_a_larger_one(kind: type[PreTrainedModel], tmp_path: Path) -> None:
    config = CLIPConfig(
        vision_config=tiny_clip().to_dict(),
        text_config={"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
    )
    whole = kind(config if kind is CLIPModel else config.vision_config).eval()
    x = torch.randn(1, 3, 48, 48)
    expected = reference(whole.vision_model, -2, 1, x, 24, [24, 48])
    tower = S2VisionModel.wrap(whole, [24, 48])
    torch.testing.assert_close(tower(x).last_hidden_state, expected, rtol=1e-5, atol=1e-5)
    tower.save_pretrained(tmp_path)
    assert torch.equal(AutoModel.from_pretrained(tmp_path)(x).last_hidden_state, tower(x).last_hidden_state)
    assert S2VisionConfig(backbone_config=config, scales=[24]).backbone_config.model_type == "clip_vision_model"


def test_options_of_the_wrapper_reach_it() -> None:
    base = S2VisionModel(S2VisionConfig(backbone_config=tiny_clip(), scales=[24, 48])).eval()
    x = torch.randn(2, 3, 48, 48)

    def tower(**options: object) -> S2VisionModel:
        model = S2VisionModel(S2VisionConfig(backbone_config=tiny_clip(), scales=[24, 48], **options)).eval()
        model.load_state_dict(base.state_dict())
        return model

    small, large = base(x).last_hidden_state.chunk(2, dim=-1)
    added = tower(merge="add")
    assert added.config.hidden_size == 16
    torch.testing.assert_close(added(x).last_hidden_state, small + large)

    calls: list[int] = []
    bounded = tower(max_tiles_per_call=3)
    bounded.backbone.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    torch.testing.assert_close(bounded(x).last_hidden_state, base(x).last_hidden_state)
    assert calls == [3, 3, 3, 1]

    fine = tower(resize_output_to_idx=1)
    assert fine.config.num_image_tokens == 64
    out = fine(x).last_hidden_state.unflatten(1, (8, 8))
    torch.testing.assert_close(out[:, ::2, ::2, :16].flatten(1, 2), small)
    torch.testing.assert_close(
        out[..., 16:].unflatten(1, (4, 2)).unflatten(3, (4, 2)).mean((2, 4)).flatten(1, 2), large
    )


@pytest.mark.parametrize("family", ["clip", "siglip", "dinov2", "vit"])
def test_whole_images_interpolate_position_embeddings(family: str) -> None:
    prefix = FAMILIES[family][1]
    backbone, x = build(family), torch.randn(1, 3, 48, 48)
    flag = {} if family == "dinov2" else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        states = backbone(x, output_hidden_states=True, **flag).hidden_states[-2]
        whole = F.avg_pool2d(states[:, prefix:].transpose(1, 2).unflatten(2, (8, 8)), 2).flatten(2).transpose(1, 2)
        out = S2VisionModel.wrap(backbone, [24, 48], split=False)(x).last_hidden_state
    torch.testing.assert_close(out[..., 16:], whole, rtol=1e-5, atol=1e-5)


def test_tiles_smaller_than_the_backbone_was_trained_on() -> None:
    backbone, x = build("dinov2"), torch.randn(1, 3, 48, 48)
    expected = reference(backbone, -2, 1, x, 12, [24, 48])
    tower = S2VisionModel.wrap(backbone, [24, 48], max_split_size=12)
    torch.testing.assert_close(tower(x).last_hidden_state, expected, rtol=1e-5, atol=1e-5)
    assert tower.config.num_image_tokens == expected.shape[1]


@pytest.mark.parametrize(
    ("scales", "tiles"),
    [  # tables 6 and 7 (256, 512, 1024 on a backbone of 224), appendix C (0.5, 1 and 2 times), and 1.5 times
        ([30, 60, 120], [30, 30, 30]),
        ([12, 24, 48], [12, 24, 24]),
        ([24, 36], [24, 18]),
    ],
)
@pytest.mark.parametrize("index", [0, -1])
@torch.no_grad()
def test_scales_that_are_no_multiples_of_the_backbones_size(scales: list[int], tiles: list[int], index: int) -> None:
    backbone, x = build("clip"), torch.randn(2, 3, scales[-1], scales[-1])
    maps = []
    for side, tile in zip(scales, tiles, strict=True):
        image, lines = F.interpolate(x, size=side, mode="bicubic"), []
        for top in range(0, side, tile):
            line = []
            for left in range(0, side, tile):
                piece = image[:, :, top : top + tile, left : left + tile]
                states = backbone(piece, output_hidden_states=True, interpolate_pos_encoding=True).hidden_states
                line.append(states[-2][:, 1:].transpose(1, 2).unflatten(2, (tile // 6, tile // 6)))
            lines.append(torch.cat(line, dim=3))
        maps.append(torch.cat(lines, dim=2))
    expected = torch.cat([F.interpolate(m, size=maps[index].shape[2:], mode="area") for m in maps], dim=1)
    tower = S2VisionModel.wrap(backbone, scales, resize_output_to_idx=index)
    found = tower(x).last_hidden_state
    torch.testing.assert_close(found, expected.flatten(2).transpose(1, 2), rtol=1e-5, atol=1e-5)
    assert found.shape[1:] == (tower.config.num_image_tokens, tower.config.hidden_size)
    assert tower.config.image_size // tower.config.patch_size == tower.config.grid_size


def test_an_empty_batch() -> None:
    for mode in (False, True, "dynamic"):
        tower = S2VisionModel(S2VisionConfig(backbone_config=tiny_clip(), scales=[24, 48], keep_aspect=mode))
        side = tower.config.image_size
        assert tower(torch.empty(0, 3, side, side)).last_hidden_state.shape == (0, 16, 32)


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_it_is_exported_with_a_batch_of_any_size(family: str) -> None:
    base = FAMILIES[family][0].image_size
    tower = S2VisionModel.wrap(build(family), [base, 2 * base]).requires_grad_(False)
    x = torch.randn(3, 3, 2 * base, 2 * base)
    batch = torch.export.Dim("batch", min=1)
    exported = torch.export.export(tower, (x[:2],), dynamic_shapes=({0: batch},), strict=False)
    expected = tower(x).last_hidden_state
    torch.testing.assert_close(exported.module()(x).last_hidden_state, expected, rtol=1e-4, atol=1e-5)


def test_weights_on_the_disk(tmp_path: Path) -> None:
    """A device map with offload, and an image that is blank or mostly padding."""
    tower = S2VisionModel.wrap(build("clip"), [24, 48])
    tower.save_pretrained(tmp_path / "tower")
    offloaded = S2VisionModel.from_pretrained(
        tmp_path / "tower",
        device_map={"backbone.embeddings": "cpu", "backbone.pre_layrnorm": "disk", "backbone.encoder": "disk",
                    "backbone.post_layernorm": "cpu"},
        offload_folder=tmp_path / "disk",
    )  # fmt: skip
    images = torch.cat([torch.zeros(1, 3, 48, 48), torch.randn(1, 3, 48, 48)])
    with torch.no_grad():
        torch.testing.assert_close(offloaded(images).last_hidden_state, tower(images).last_hidden_state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    tower = S2VisionModel.wrap(build("clip"), [24, 48])
    tower.save_pretrained(tmp_path)
    half = AutoModel.from_pretrained(tmp_path, dtype=dtype)
    assert {p.dtype for p in half.parameters()} == {dtype}
    x = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        out, expected = half(x).last_hidden_state, tower(x).last_hidden_state
        assert out.dtype == half(x.to(dtype)).last_hidden_state.dtype == dtype
    assert F.cosine_similarity(out.float(), expected, dim=-1).min() > 0.99
    half.save_pretrained(tmp_path / "half")
    assert AutoModel.from_pretrained(tmp_path / "half").dtype == dtype


def test_attention_implementation_reaches_the_backbone(tmp_path: Path) -> None:
    S2VisionModel.wrap(build("clip"), [24, 48]).save_pretrained(tmp_path)
    tower = AutoModel.from_pretrained(tmp_path, attn_implementation="eager")
    assert tower.backbone.config._attn_implementation == "eager"
    assert AutoModel.from_pretrained(tmp_path).backbone.config._attn_implementation == "sdpa"


def test_device_placement(tmp_path: Path) -> None:
    S2VisionModel.wrap(build("clip"), [24, 48]).save_pretrained(tmp_path)
    x = torch.randn(1, 3, 48, 48)
    expected = AutoModel.from_pretrained(tmp_path)(x).last_hidden_state
    placed = AutoModel.from_pretrained(tmp_path, device_map={"": "cpu"})
    assert torch.equal(placed(x).last_hidden_state, expected)
    assert "CLIPEncoderLayer" in placed._no_split_modules
    with torch.device("meta"):
        empty = S2VisionModel(AutoConfig.from_pretrained(tmp_path))
        out = empty(torch.empty(2, 3, 48, 48)).last_hidden_state
    assert out.device.type == "meta"
    assert out.shape == (2, 16, 32)


@pytest.mark.parametrize("options", [{}, {"split": False}])
def test_compiles_without_a_graph_break(options: dict) -> None:
    tower = S2VisionModel(S2VisionConfig(backbone_config=tiny_clip(), scales=[24, 48], **options)).eval()
    tower.requires_grad_(False)
    x = torch.randn(1, 3, 48, 48)
    torch._dynamo.reset()
    compiled = torch.compile(tower, fullgraph=True, backend="aot_eager")
    expected = tower(x).last_hidden_state
    torch.testing.assert_close(compiled(x).last_hidden_state, expected, rtol=1e-4, atol=1e-4)


def test_tuple_output_and_config_round_trip() -> None:
    config = S2VisionConfig(backbone_config=tiny_clip(), scales=(24, 48))
    tower = S2VisionModel(config).eval()
    x = torch.randn(1, 3, 48, 48)
    assert torch.equal(tower(x, return_dict=False)[0], tower(x).last_hidden_state)
    again = S2VisionConfig.from_dict(config.to_dict())
    assert again.to_dict() == config.to_dict()
    assert again.scales == [24, 48]


def test_the_papers_tower() -> None:
    config = S2VisionConfig(scales=[336, 672, 1008])
    assert (config.hidden_size, config.image_size, config.patch_size, config.num_image_tokens) == (3072, 1008, 42, 576)
    assert S2VisionConfig().hidden_size == 1024
    with torch.device("meta"):
        tower = S2VisionModel(config)
        assert tower(torch.empty(1, 3, 1008, 1008)).last_hidden_state.shape == (1, 576, 3072)
    assert len(tower.backbone.encoder.layers) == 23


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"scales": [48, 24]}, r"ascend, such as \[24, 48, 72\]"),
        ({"scales": [3, 24]}, "tile of 3 pixels is no whole number"),
        ({"scales": [24, 72, 48]}, "ascend"),
        ({"scales": [24, 24]}, "ascend"),
        ({"scales": []}, "whole numbers of pixels"),
        ({"scales": [24, 48.0]}, "whole numbers of pixels"),
        ({"scales": [24, "48"]}, "whole numbers of pixels"),
        ({"scales": [24, 48], "max_split_size": 0}, "positive"),
        ({"scales": [24, 48], "max_split_size": 5}, "max_split_size=5"),
        ({"scales": [24, 50], "max_split_size": 24}, "50 pixels does not split into 3 x 3 equal tiles"),
        ({"scales": [24, 48], "feature_layer": -5}, "3 blocks"),
        ({"scales": [24, 48], "feature_layer": 4}, "3 blocks"),
        ({"scales": [24, 48], "resize_output_to_idx": 2}, "2 scales"),
        ({"scales": [24, 48], "merge": "mean"}, "'concat' or 'add'"),
        ({"scales": [24, 48], "max_tiles_per_call": 0}, "at least 1"),
        ({"backbone_config": {"hidden_size": 16}}, "model_type"),
        ({"backbone_config": LlamaConfig()}, "'llama'.* image_size"),
        ({"backbone_config": SwinConfig(), "scales": [224, 448], "split": False}, "tiles of 224 pixels alone"),
        ({"backbone_config": ResNetConfig()}, "'resnet'"),
        ({"backbone_config": ViTConfig(image_size=[224, 112])}, "one side"),
    ],
)
def test_what_the_backbone_cannot_run_is_refused(options: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        S2VisionConfig(**{"backbone_config": tiny_clip(), **options})


def test_images_of_another_size_are_refused() -> None:
    tower = S2VisionModel(S2VisionConfig(backbone_config=tiny_clip(), scales=[24, 48]))
    with pytest.raises(ValueError, match=r"must be \(B, 3, 48, 48\).* not \(1, 3, 24, 24\)"):
        tower(torch.zeros(1, 3, 24, 24))


def test_a_model_that_would_not_load_again_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Dinov2Backbone .* load it with AutoModel"):
        S2VisionModel.wrap(Dinov2Backbone(FAMILIES["dinov2"][0]), [24, 48])
