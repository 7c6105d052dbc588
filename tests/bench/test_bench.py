"""What `llava-s2 bench` counts, measures and scores, against formulas and against what is planted."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPVisionConfig, ConvNextConfig, SwinConfig

from llava_s2.bench.colour_probe import Features, probe_score
from llava_s2.bench.cost import cost
from llava_s2.bench.flops import paper_table, reproduce
from llava_s2.bench.paper import ROWS
from llava_s2.bench.sweep import Setting
from llava_s2.cli import main
from llava_s2.errors import InputError
from llava_s2.towers.load_tower import load_vision_config


def vit_macs(side: int, patch: int, width: int, depth: int, prefix: int, hidden: int) -> tuple[int, int]:
    """Multiply-accumulates of a plain ViT on one image: linear layers and patches, and attention's two products."""
    patches = (side // patch) ** 2
    tokens = patches + prefix
    linear = 3 * patch**2 * width * patches + depth * tokens * (4 * width**2 + 2 * width * hidden)
    return linear, depth * 2 * tokens**2 * width


def test_a_vit_is_counted_as_the_formula_says() -> None:
    config = CLIPVisionConfig(
        hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, image_size=32, patch_size=8
    )
    linear, attention = vit_macs(32, 8, 48, 3, 1, 96)
    found = cost(config, [32, 64, 96])
    assert (found.linear, found.attention) == (14 * linear, 14 * attention)
    assert (found.tiles, found.tokens, found.width) == (14, 16, 3 * 48)
    whole = cost(config, [32, 64], split=False)
    parts = [vit_macs(side, 8, 48, 3, 1, 96) for side in (32, 64)]
    assert (whole.linear, whole.attention) == tuple(map(sum, zip(*parts, strict=True)))
    early = cost(config, [32], feature_layer=-2)
    assert early.macs == sum(vit_macs(32, 8, 48, 2, 1, 96))
    assert early.parameters == found.parameters


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("open_clip:ViT-B-32", (32, 768, 12, 1, 3072)),
        ("timm:test_vit", (16, 64, 6, 1, 192)),
    ],
)
def test_other_libraries_are_counted_as_the_formula_says(name: str, sizes: tuple[int, ...]) -> None:
    config = load_vision_config(name)
    side = 160 if "test_vit" in name else 224
    linear, attention = vit_macs(side, *sizes)
    found = cost(config, [side, 2 * side])
    assert (found.linear, found.attention) == (5 * linear, 5 * attention)


def test_nets_in_stages_are_counted() -> None:
    convnext = ConvNextConfig(num_stages=2, depths=[1, 1], hidden_sizes=[8, 16], image_size=32, patch_size=4)
    # stem; a block: 7 x 7 depthwise, and two linear layers four times as wide; between stages a 2 x 2 convolution
    expected = 64 * (48 * 8 + 49 * 8 + 8 * 8 * 8) + 16 * (4 * 8 * 16 + 49 * 16 + 8 * 16 * 16)
    assert cost(convnext, [32, 64]).macs == 5 * expected
    swin = SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1], num_heads=[2], window_size=4)
    windows = 4
    expected = 64 * (48 * 8 + 4 * 8 * 8 + 2 * 8 * 32) + windows * 2 * 16 * 16 * 8
    assert cost(swin, [32]).macs == expected


@pytest.mark.parametrize("table", [5, 6, 7, 8, 10, 14])
def test_the_papers_numbers_follow_from_the_formula(table: int) -> None:
    """Independently of what is counted: every row's note and convention, by the closed formula of a ViT."""
    shapes = {
        "timm:vit_base_patch16_224": (16, 768, 12, 3072),
        "timm:vit_large_patch16_224": (16, 1024, 24, 4096),
        "timm:vit_huge_patch14_224": (14, 1280, 32, 5120),
        "timm:vit_base_patch14_dinov2": (14, 768, 12, 3072),
        "timm:vit_large_patch14_dinov2": (14, 1024, 24, 4096),
        "timm:vit_giant_patch14_dinov2": (14, 1536, 40, 4096 * 3 // 2),  # SwiGLU has three matrices
        "open_clip:ViT-B-16": (16, 768, 12, 3072),
        "open_clip:ViT-L-14": (14, 1024, 24, 4096),
        "open_clip:ViT-H-14": (14, 1280, 32, 5120),
        "open_clip:ViT-g-14": (14, 1408, 40, 6144),
        "open_clip:ViT-bigG-14": (14, 1664, 48, 8192),
    }
    rows = [row for row in ROWS if row.table == table]
    assert rows
    for row in rows:
        patch, width, depth, hidden = shapes[row.backbone]
        scales = row.counted or row.scales
        linear, attention = vit_macs(scales[0], patch, width, depth, 1, hidden)
        tiles = sum((side // scales[0]) ** 2 for side in scales)
        giga = tiles * (linear + attention * row.products / 2) / 1e9
        if "no ViT-H at 224²" in row.note:
            assert giga / row.giga < 0.85
        else:
            assert giga == pytest.approx(row.giga, rel=0.03), row


def test_rows_of_the_paper_are_reproduced() -> None:
    names = {"timm:vit_base_patch16_224", "open_clip:ViT-B-16", "timm:vit_base_patch14_dinov2"}
    rows = tuple(row for row in ROWS if row.backbone in names and row.table in (5, 6, 7))
    found = reproduce(rows)
    assert len(found) > 15
    assert all(item.agrees and item.millions == pytest.approx(86, abs=1) for item in found)
    text = paper_table(found)
    assert f"{len(found)} of {len(found)} rows agree within 3%" in text
    assert "table 7, DINOv2 Base 504²" in text.split("* inconsistent:")[1]


def test_flops_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "flops", "embedded", "--scales", "112", "--scales", "112,224,336"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[1].split()[-3:] == ["1", "49", "192"]
    assert out[2].split()[-3:] == ["14", "49", "576"]
    assert main(["bench", "flops", "timm:nosuch"]) == 2
    assert "nosuch is not known" in capsys.readouterr().err
    assert main(["bench", "flops", "embedded", "--scales", "112,201"]) == 2
    assert "[112, 224, 336]" in capsys.readouterr().err


def test_throughput_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["bench", "throughput", "--output", str(tmp_path), "--seconds", "0.01", "--largest", "20"]
    assert main(flags) == 0
    text = capsys.readouterr().out
    assert "138.5  1.000" in text
    kept = (tmp_path / "throughput.jsonl").read_text()
    assert (tmp_path / "throughput.png").stat().st_size > 1000
    assert json.loads(kept)["images_per_second"] > 0
    assert main(flags) == 0  # nothing is measured again
    assert (tmp_path / "throughput.jsonl").read_text() == kept
    assert capsys.readouterr().out == text


def planted(seed: int, signal: float) -> Features:
    """Images of 9 random tokens; the token of a thing holds its name, and its color as strongly as told."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(200, 9, 24, generator=generator)
    things = []
    for image in range(200):
        for place, name in enumerate(torch.randperm(12, generator=generator)[:3].tolist()):
            color = int(torch.randint(8, (1,), generator=generator))
            tokens[image, 3 * place, name] += 6
            tokens[image, 3 * place, 12 + color] += 6 * signal
            things.append((image, name, color))
    image, name, color = torch.tensor(things).unbind(1)
    return Features(tokens.half(), image, name, color)


def test_the_probe_finds_what_is_there_and_nothing_else() -> None:
    correct, count = probe_score(planted(0, 1.0), planted(1, 1.0))
    assert count == 600
    assert correct > 0.9 * count
    correct, count = probe_score(planted(0, 0.0), planted(1, 0.0))
    assert correct < 0.2 * count


def test_sweep_command_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["bench", "sweep", "embedded", "--images", "12", "--tests", "6", "--output", str(tmp_path)]
    assert main([*flags, "--scales", "112"]) == 0
    first = (tmp_path / "sweep.jsonl").read_text()
    capsys.readouterr()
    assert main([*flags, "--scales", "112", "--scales", "112,224", "--ablation"]) == 0
    lines = (tmp_path / "sweep.jsonl").read_text().splitlines()
    assert lines[0] + "\n" == first
    results: list[dict[str, Any]] = [json.loads(line) for line in lines]
    assert [(r["key"]["split"], r["key"]["merge"], r["tiles"], r["tokens"]) for r in results] == [
        (True, "concat", 1, 49),
        (True, "concat", 5, 49),
        (False, "concat", 2, 49),
        (True, "add", 5, 49),
    ]
    assert results[1]["macs"] == 5 * results[0]["macs"]
    assert (tmp_path / "sweep.png").stat().st_size > 1000
    assert "whole images" in capsys.readouterr().out


def test_a_sweep_over_what_cannot_be_run_is_refused_before_any_is() -> None:
    with pytest.raises(InputError, match=r"embedded at 112², 201²: .* \[112, 224, 336\]"):
        Setting("embedded", (112, 201)).config()
