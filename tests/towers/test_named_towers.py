"""Towers named as open_clip and timm name them: found, trained with, saved, loaded again; and what is refused."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from PIL import Image
from transformers import AutoConfig, AutoModel

from llava_s2.cli import main
from llava_s2.errors import InputError
from llava_s2.formats.load import load_pretrained
from llava_s2.model.assemble import assemble, load_image_processor
from llava_s2.s2 import S2VisionModel
from llava_s2.synthetic.scene_files import write_vstar
from llava_s2.synthetic.scenes import SceneConfig
from llava_s2.towers.load_tower import load_image_statistics, load_vision_backbone, load_vision_config, tower_config
from llava_s2.towers.named_tower import NamedTower
from llava_s2.train.recipe import train

LLM = Path(__file__).parents[1] / "golden" / "llava_tiny" / "vicuna-tiny"
TEXT = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1}


def random_open_clip(vision: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    return open_clip.CLIP(8, vision, TEXT)


def open_clip_folder(folder: Path) -> str:
    """What a hub repository of open_clip holds."""
    vision = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 3, "head_width": 16}
    preprocess = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    config = {"model_cfg": {"embed_dim": 8, "vision_cfg": vision, "text_cfg": TEXT}, "preprocess_cfg": preprocess}
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.save(random_open_clip(vision).state_dict(), folder / "open_clip_pytorch_model.bin")
    return f"open_clip:{folder}"


def timm_file(folder: Path) -> str:
    folder.mkdir()
    torch.manual_seed(0)
    torch.save(timm.create_model("test_vit").state_dict(), folder / "vit.pth")
    return f"timm:test_vit/{folder / 'vit.pth'}"


def timm_stages_file(folder: Path) -> str:
    folder.mkdir()
    torch.manual_seed(0)
    torch.save({"state_dict": timm.create_model("test_convnext").state_dict()}, folder / "convnext.pth")
    return f"timm:test_convnext/{folder / 'convnext.pth'}"


def mae_file(folder: Path, width: int = 48, **beside: Any) -> str:
    """What facebookresearch/mae and ir413/mvp publish: a timm ViT's keys under `model`, with or without decoder."""
    folder.mkdir()
    torch.manual_seed(0)
    vit = timm.create_model(
        "vit_base_patch16_224",
        img_size=32,
        patch_size=8,
        embed_dim=width,
        depth=3,
        num_heads=16 if width == 1024 else 12,
        num_classes=0,
    )
    torch.save({"model": vit.state_dict() | beside.pop("more", {}), **beside}, folder / "mae.pth")
    return f"mae:{folder / 'mae.pth'}"


TOWERS = {  # name -> how it is made, side in pixels, hidden state that is read, normalisation
    "open_clip": (open_clip_folder, 32, -2, ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])),
    "timm": (timm_file, 160, -2, ([0.5] * 3, [0.5] * 3)),
    "timm_stages": (timm_stages_file, 160, -1, ([0.5] * 3, [0.5] * 3)),
    "mae": (mae_file, 32, -2, ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])),
}


def fine_tuned(folder: Path, tower: str, scales: str, picture: Image.Image, *more: str) -> Path:
    """An adapter after two steps on a picture."""
    picture.save(folder / "a.png")
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A ring."}]
    (folder / "data.json").write_text(json.dumps([{"id": "1", "image": "a.png", "conversations": turns}] * 2))
    flags = [
        *("--model_name_or_path", str(LLM), "--vision_tower", tower, "--s2_scales", scales),
        *("--data_path", str(folder / "data.json"), "--image_folder", str(folder)),
        *("--output_dir", str(folder / "out"), "--max_steps", "2", "--per_device_train_batch_size", "1"),
        *("--report_to", "none", "--lora_r", "2", "--lora_alpha", "4", "--learning_rate", "0.01"),
    ]
    train("finetune", [*flags, *more])
    return folder / "out"


@pytest.fixture(scope="module")
def vstar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "vstar"
    write_vstar(folder, 1, 1, config=SceneConfig(side=(200, 200)))
    return folder


def evaluates(model: Path, vstar: Path) -> bool:
    """Whether ``llava-s2 eval`` answers both of V*'s questions with one of their options."""
    output = model.with_name("eval")
    assert main(["eval", "vstar", "--model", str(model), "--data", str(vstar), "--output", str(output)]) == 0
    lines = [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]
    options = [option for file in vstar.rglob("*.json") for option in json.loads(file.read_text())["options"]]
    return len(lines) == 2 and all(line["text"] in options for line in lines)


@pytest.mark.parametrize("kind", TOWERS)
def test_a_llava_trains_with_it_loads_again_and_is_evaluated(kind: str, tmp_path: Path, vstar: Path) -> None:
    make, side, layer, (mean, std) = TOWERS[kind]
    tower = make(tmp_path / "tower")
    picture = Image.radial_gradient("L").convert("RGB").resize((90, 60))
    adapter = fine_tuned(tmp_path, tower, f"{side},{2 * side}", picture)
    model, processor = load_pretrained(adapter, dtype="float32")
    loaded = model.model.vision_tower
    assert loaded.config.feature_layer == layer
    image_processor = processor.image_processor
    assert (list(image_processor.image_mean), list(image_processor.image_std)) == (mean, std)
    inputs = processor(images=picture, text="<image>", return_tensors="pt")
    with torch.no_grad():
        fresh = S2VisionModel.wrap(
            load_vision_backbone(tower, tower_config(tower, [side]).backbone_config, torch.float32), [side, 2 * side]
        )
        features = fresh(inputs["pixel_values"]).last_hidden_state
        assert features.shape == (1, fresh.config.num_image_tokens, 2 * fresh.config.backbone_hidden_size)
        assert features.std() > 0
        torch.testing.assert_close(loaded(inputs["pixel_values"]).last_hidden_state, features)
        model.save_pretrained(tmp_path / "whole")
        processor.save_pretrained(tmp_path / "whole")
        again, _ = load_pretrained(tmp_path / "whole")
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)
    assert evaluates(adapter, vstar)


_VIT = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 24, "patch_size": 6}
_STAGES = {"depths": [1, 1, 2, 1], "hidden_sizes": [8, 8, 16, 24], "image_size": 64}
STOCK: dict[str, tuple[str, dict[str, Any]]] = {  # SigLIP 2 at a fixed size is of SigLIP's type
    "siglip": ("siglip_vision_model", {**_VIT, "intermediate_size": 32}),
    "dinov2": ("dinov2", {**_VIT, "mlp_ratio": 2}),
    "dinov2_with_registers": ("dinov2_with_registers", {**_VIT, "mlp_ratio": 2, "num_register_tokens": 4}),
    "dinov3": ("dinov3_vit", {**_VIT, "intermediate_size": 32, "num_register_tokens": 2}),
    "vit": ("vit", {**_VIT, "intermediate_size": 32}),
    "vit_mae": ("vit_mae", {**_VIT, "intermediate_size": 32}),
    "swin": ("swin", {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1] * 3, "num_heads": [1, 2, 2],
                      "window_size": 4}),
    "convnext": ("convnext", {**_STAGES, "patch_size": 4}),
    "dinov3_convnext": ("dinov3_convnext", _STAGES),
}  # fmt: skip


@pytest.mark.parametrize("family", STOCK)
def test_a_llava_around_every_family_of_transformers(family: str, tmp_path: Path, vstar: Path) -> None:
    """Assembled from its folder, a gradient into the projector, an answer, saved, loaded and evaluated."""
    kind, settings = STOCK[family]
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **settings)
    AutoModel.from_config(config).save_pretrained(tmp_path / "tower")
    statistics = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    preprocessor = {"image_processor_type": "ViTImageProcessor", **statistics}
    (tmp_path / "tower/preprocessor_config.json").write_text(json.dumps(preprocessor))
    side = settings["image_size"]
    model, processor = assemble(LLM, tmp_path / "tower", [side, 2 * side])
    assert {key: list(getattr(processor.image_processor, key)) for key in statistics} == statistics
    picture = Image.radial_gradient("L").convert("RGB").resize((90, 60))
    inputs = processor(images=picture, text="<image>\nWhat?", return_tensors="pt")
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert model.model.multi_modal_projector.linear_1.weight.grad.abs().sum() > 0
    answer = model.generate(**inputs, max_new_tokens=2, do_sample=False)
    model.save_pretrained(tmp_path / "whole")
    processor.save_pretrained(tmp_path / "whole")
    again, _ = load_pretrained(tmp_path / "whole")
    assert torch.equal(again.generate(**inputs, max_new_tokens=2, do_sample=False), answer)
    assert evaluates(tmp_path / "whole", vstar)


def test_pictures_that_are_not_square_through_a_whole_llava(tmp_path: Path) -> None:
    """Trained with `keep`, loaded as adapter, asked, saved whole: the tower tiles the picture on its own shape. An
    adapter's tower has every setting that its config names."""
    name = open_clip_folder(tmp_path / "tower")
    picture = Image.radial_gradient("L").convert("RGB").resize((90, 45))
    adapter = fine_tuned(tmp_path, name, "32,64", picture, "--image_aspect_ratio", "keep")
    model, processor = load_pretrained(adapter, dtype="float32")
    inputs = processor(images=picture, text="<image>\nWhat?", return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 96, 96)
    backbone = load_vision_backbone(name, tower_config(name, [32]).backbone_config, torch.float32)
    fresh = S2VisionModel.wrap(backbone, [32, 64], keep_aspect=True)
    with torch.no_grad():
        features = model.model.vision_tower(inputs["pixel_values"]).last_hidden_state
        torch.testing.assert_close(features, fresh(inputs["pixel_values"]).last_hidden_state)
    answer = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    model.save_pretrained(tmp_path / "whole")
    processor.save_pretrained(tmp_path / "whole")
    again, _ = load_pretrained(tmp_path / "whole")
    assert torch.equal(again.generate(**inputs, max_new_tokens=4, do_sample=False), answer)

    changed = {"resize_output_to_idx": 0, "max_tiles_per_call": 3}
    file = adapter / "base" / "config.json"
    config = json.loads(file.read_text())
    config["vision_config"].update(changed, reuse_flat_tiles=False)  # which version 0.1 had
    file.write_text(json.dumps(config))
    loaded, _ = load_pretrained(adapter)
    assert {key: getattr(loaded.config.vision_config, key) for key in changed} == changed


@pytest.mark.parametrize("kind", TOWERS)
def test_assembled_with_the_weights_of_the_file(kind: str, tmp_path: Path) -> None:
    make, side, _, _ = TOWERS[kind]
    name = make(tmp_path / "tower")
    model, _ = assemble(LLM, name, [side, 2 * side])
    file = next(path for path in (tmp_path / "tower").iterdir() if path.suffix in (".bin", ".pth"))
    saved = torch.load(file, weights_only=True)
    saved = saved.get("model", saved.get("state_dict", saved))
    own = {
        key.removeprefix("backbone.").removeprefix("timm_model."): tensor
        for key, tensor in model.model.vision_tower.state_dict().items()
    }
    assert own
    for key, tensor in own.items():
        assert torch.equal(tensor, saved[key])


def test_open_clip_normalises_as_the_tag_says(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    file.touch()
    half = ([0.5] * 3, [0.5] * 3)
    openai = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
    assert load_image_statistics("open_clip:ViT-L-14/laion2b_s32b_b82k") == half
    assert load_image_statistics("open_clip:ViT-L-14/openai") == openai
    assert load_image_statistics(f"open_clip:ViT-L-14/laion2b_s32b_b82k/{file}") == half
    assert load_image_statistics(f"open_clip:ViT-L-14/{file}") == openai


@pytest.mark.parametrize("size", [(90, 60), (200, 300), (31, 64)])
def test_the_image_processor_of_a_tower(size: tuple[int, int], tmp_path: Path) -> None:
    """One resize of the padded picture to the largest scale, by PIL; torchvision's is at most two of 255 levels off."""
    name = open_clip_folder(tmp_path / "tower")
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    mean, std = np.array([0.1, 0.2, 0.3]), np.array([0.4, 0.5, 0.6])
    side = max(size)
    square = Image.new("RGB", (side, side), tuple(int(255 * value) for value in mean))
    square.paste(picture, ((side - size[0]) // 2, (side - size[1]) // 2))
    resized = np.asarray(square.resize((96, 96), Image.Resampling.BICUBIC))
    expected = ((resized / 255 - mean) / std).transpose(2, 0, 1)[None]
    plain = load_image_processor(name, [32, 64, 96])(picture, return_tensors="pt")["pixel_values"]
    np.testing.assert_allclose(plain, expected, atol=1e-5)
    fast = load_image_processor(name, [32, 64, 96], backend="torchvision")(picture, return_tensors="pt")["pixel_values"]
    assert ((fast - plain) * torch.tensor(std)[None, :, None, None]).abs().max() < 2.01 / 255


def test_an_open_clip_checkpoint_file(tmp_path: Path) -> None:
    """The training script's file, whose names start with `module.`, of an architecture that open_clip knows."""
    clip = open_clip.create_model("ViT-S-32-alt")
    torch.save({"epoch": 1, "state_dict": {f"module.{k}": v for k, v in clip.state_dict().items()}}, tmp_path / "e.pt")
    name = f"open_clip:ViT-S-32-alt/{tmp_path / 'e.pt'}"
    backbone = load_vision_backbone(name, tower_config(name, [224, 448]).backbone_config, torch.float32)
    for key, tensor in backbone.visual.state_dict().items():
        assert torch.equal(tensor, clip.visual.state_dict()[key])


@pytest.mark.parametrize(
    ("name", "width", "blocks", "scales", "tokens"),
    [
        ("open_clip:ViT-L-14/laion2b_s32b_b82k", 1024, 24, [224, 448], 256),
        ("open_clip:ViT-H-14", 1280, 32, [224, 448], 256),
        ("open_clip:ViT-bigG-14", 1664, 48, [224, 448, 896], 256),
        ("open_clip:convnext_base_w/laion2b_s13b_b82k", 1024, 4, [256, 512], 64),
        ("open_clip:ViT-B-16-SigLIP", 768, 12, [224, 448], 196),
        ("timm:vit_base_patch14_dinov2.lvd142m", 768, 12, [518, 1036], 1369),
        ("timm:vit_base_patch16_dinov3.lvd1689m", 768, 12, [256, 512], 256),
        ("timm:eva02_large_patch14_clip_336.merged2b", 1024, 24, [336, 672], 576),
        ("timm:swin_base_patch4_window7_224", 1024, 4, [224, 448], 49),
        ("timm:efficientnet_lite0", 320, 5, [224, 448], 49),
    ],
)
def test_the_size_of_released_towers_is_known_without_weights(
    name: str, width: int, blocks: int, scales: list[int], tokens: int
) -> None:
    config = tower_config(name, scales)
    assert config.backbone_hidden_size == width
    assert config.num_blocks == blocks
    assert config.num_image_tokens == tokens


def test_mae_checkpoints_with_decoder_and_training_state(tmp_path: Path) -> None:
    more = {"mask_token": torch.zeros(1, 1, 8), "decoder_embed.weight": torch.zeros(8, 48)}
    name = mae_file(tmp_path / "full", more=more, args=argparse.Namespace(lr=1), epoch=3)
    backbone = load_vision_backbone(name, tower_config(name, [32]).backbone_config, torch.float32)
    assert len(backbone.timm_model.blocks) == 3
    large = mae_file(tmp_path / "large", width=1024)
    heads = load_vision_backbone(large, tower_config(large, [32]).backbone_config, torch.float32)
    assert heads.timm_model.blocks[0].attn.num_heads == 16


def test_a_name_with_a_relative_path_is_recorded_with_a_full_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timm_file(tmp_path / "tower")
    monkeypatch.chdir(tmp_path)
    assert str(NamedTower.parse("timm:test_vit/tower/vit.pth")) == f"timm:test_vit/{tmp_path / 'tower' / 'vit.pth'}"
    assert str(NamedTower.parse("open_clip:ViT-L-14/laion2b_s32b_b82k")) == "open_clip:ViT-L-14/laion2b_s32b_b82k"
    assert NamedTower.parse("openai/clip-vit-large-patch14-336") is None


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("open_clip:ViT-L14/openai", r"ViT-L14 is not known; near it are ViT-L-14"),
        ("open_clip:ViT-L-14/nosuch", r"nosuch is neither a file nor weights .* laion2b_s32b_b82k"),
        ("open_clip:ViT-L-14", r"name its weights too: open_clip:ViT-L-14/openai"),
        ("timm:vit_bse_patch16_224", r"vit_bse_patch16_224 is not known; near it are vit_base_patch16_224"),
        ("timm:test_vit/nosuch.pth", "no file nosuch.pth"),
        ("mae:", "no file"),
        ("timm:test_convnext/OTHER", r"convnext.* the weights lack"),
        ("mae:OTHER", "not a MAE's ViT"),
        ("timm:test_vit/EVIL", "would run code"),
    ],
)
def test_what_cannot_be_had_is_told_in_one_line(name: str, says: str, tmp_path: Path) -> None:
    torch.save({"blocks.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    torch.save({"model": Exception}, tmp_path / "evil.pth")
    name = name.replace("OTHER", str(tmp_path / "other.pth")).replace("EVIL", str(tmp_path / "evil.pth"))
    with pytest.raises(InputError, match=says) as raised:
        load_vision_backbone(name, load_vision_config(name), torch.float32)
    assert "\n" not in str(raised.value)
