"""`multiscale_forward` held against the public s2wrapper on random calls: backbones, scales, prefix tokens, shapes.

    git clone https://github.com/bfshi/scaling_on_scales            # master, square images
    git clone -b dev_any_shape https://github.com/bfshi/scaling_on_scales any_shape
    python benchmarks/public_wrapper.py scaling_on_scales --calls 1500
    python benchmarks/public_wrapper.py any_shape --calls 1500

Calls that the public wrapper itself refuses are left out.
"""

import argparse
import inspect
import random
import sys
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from typing import Any

import timm
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import AutoConfig, AutoModel

from llava_s2 import multiscale_forward

_VIT: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 24,
    "patch_size": 8,
}  # fmt: skip
Backbone = tuple[Callable[[Tensor], Tensor], int, str, int]  # function, prefix tokens, output shape, smallest step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("clone", help="folder of the public repository, on the branch to compare with")
    parser.add_argument("--calls", type=int, default=1500, help="that the public wrapper answers")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    torch.manual_seed(args.seed)
    sys.path.insert(0, args.clone)
    public_forward = import_module("s2wrapper").forward
    any_shape = "split_mode" in inspect.signature(public_forward).parameters
    models = backbones()
    worst, kinds = 0.0, Counter[str]()
    with tqdm(total=args.calls, unit="call") as bar, torch.inference_mode():
        while sum(kinds.values()) < args.calls:
            name = rng.choice(list(models))
            images, options = random_call(rng, models[name], any_shape)
            try:
                expected = public_forward(models[name][0], images, **options)
            except (AssertionError, RuntimeError, TypeError):
                continue
            features = multiscale_forward(models[name][0], images, **options)
            difference = float((features - expected).abs().max()) if features.shape == expected.shape else float("inf")
            if not difference <= 1e-5:
                raise SystemExit(f"{name}, {tuple(images.shape)}, {options}: differs by {difference}")
            worst = max(worst, difference)
            kinds[f"{name}, {'square' if images.shape[2] == images.shape[3] else 'not square'}"] += 1
            bar.update()
    print("\n".join(f"{count:5} {kind}" for kind, count in sorted(kinds.items())))
    print(f"{args.calls} calls agree; the largest difference is {worst:.1e}")


def backbones() -> dict[str, Backbone]:
    """Tiny models with random weights: with 0 to 5 prefix tokens, and with maps."""

    def stock(kind: str, **more: Any) -> Callable[[Tensor], Tensor]:
        model: Any = AutoModel.from_config(AutoConfig.for_model(kind, **_VIT | more)).eval()
        resizes = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
        options = {"interpolate_pos_encoding": True} if resizes else {}
        return lambda tiles: model(tiles, **options).last_hidden_state

    def of_timm(name: str, **options: Any) -> Callable[[Tensor], Tensor]:
        return timm.create_model(name, **options).eval().forward_features

    return {
        "CLIP": (stock("clip_vision_model"), 1, "bnc", 8),
        "SigLIP": (stock("siglip_vision_model"), 0, "bnc", 8),
        "DINOv2": (stock("dinov2"), 1, "bnc", 8),
        "DINOv2 with registers": (stock("dinov2_with_registers", num_register_tokens=4), 5, "bnc", 8),
        "DINOv3": (stock("dinov3_vit", num_register_tokens=2), 3, "bnc", 8),
        "ViT": (stock("vit"), 1, "bnc", 8),
        "ConvNeXt": (stock("convnext", hidden_sizes=[8, 12], depths=[1, 1], num_stages=2), 0, "bchw", 8),
        "timm ViT": (of_timm("test_vit", img_size=24, patch_size=8, dynamic_img_size=True), 1, "bnc", 8),
        "timm ResNet": (of_timm("test_resnet"), 0, "bchw", 32),
    }


def random_call(rng: random.Random, backbone: Backbone, any_shape: bool) -> tuple[Tensor, dict[str, Any]]:
    """Images and the arguments that both wrappers know."""
    _, prefix, shape, step = backbone
    height = width = step * rng.randint(1, 4)
    options: dict[str, Any] = {}
    if any_shape:  # which takes sizes alone, no scales
        width = step * rng.randint(1, 5)
        sizes = [(rng.randint(1, 9 * step), rng.randint(1, 9 * step)) for _ in range(rng.randint(1, 3))]
        options |= {"img_sizes": sizes, "split_mode": rng.choice(["resize", "pad"])}
    elif rng.random() < 0.5:
        options["scales"] = sizes = rng.choices([0.5, 1, 1.5, 2, 2.5, 3, 4], k=rng.randint(1, 4))
    else:
        options["img_sizes"] = sizes = [step * rng.randint(1, 9) for _ in range(rng.randint(1, 3))]
    if height != width or rng.random() < 0.4:
        options["max_split_size"] = step * rng.randint(1, 4)
    images = torch.randn(rng.randint(1, 3), 3, height, width)
    options |= {
        "resize_output_to_idx": rng.randrange(-len(sizes), len(sizes)),
        "num_prefix_token": prefix,
        "output_shape": shape,
        "split_forward": rng.random() < 0.3,
    }
    return images, options


if __name__ == "__main__":
    main()
