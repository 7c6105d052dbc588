"""`multiscale_forward` held against the public s2wrapper on random calls: backbones, scales, prefix tokens, shapes.

    pip install git+https://github.com/bfshi/scaling_on_scales
    python benchmarks/public_wrapper.py --calls 1500

Calls that the public wrapper itself refuses are left out. With its branch `dev_any_shape` installed, pictures that are
not square are among them too; that branch stretches a square scale to whole tiles where its main branch, and this
package, cut equal smaller ones, so such calls are left out there.
"""

import argparse
import inspect
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import timm
import torch
from s2wrapper import forward as public_forward
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
    parser.add_argument("--calls", type=int, default=1500, help="that the public wrapper answers")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    torch.manual_seed(args.seed)
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
    height = step * rng.randint(1, 4)
    width = step * rng.randint(1, 5) if any_shape and rng.random() < 0.4 else height
    options: dict[str, Any] = {}
    if rng.random() < 0.5:
        options["scales"] = rng.choices([0.5, 1, 1.5, 2, 2.5, 3, 4], k=rng.randint(1, 4))
        sizes = [(int(height * scale), int(width * scale)) for scale in options["scales"]]
    elif width == height and not any_shape:
        options["img_sizes"] = [step * rng.randint(1, 9) for _ in range(rng.randint(1, 3))]
        sizes = [(side, side) for side in options["img_sizes"]]
    else:
        sizes = [(step * rng.randint(1, 9), step * rng.randint(1, 9)) for _ in range(rng.randint(1, 3))]
        options["img_sizes"] = sizes
    split = step * rng.randint(1, 4)
    if any(a != b for a, b in [*sizes, (height, width)]) or rng.random() < 0.4:
        options["max_split_size"] = split
    if any_shape and any(a == b and a % options.get("max_split_size", height) for a, b in sizes):
        return random_call(rng, backbone, any_shape)
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
