"""A small ViT that is trained from scratch with S2 inside: its gradients come from all scales."""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

from llava_s2.errors import InputError
from llava_s2.s2 import multiscale_forward
from llava_s2.studies.feature_cache import ImageSource, read_batches

_MEAN, _STD = 0.45, 0.25


@dataclass(frozen=True)
class VitSize:
    """Width and depth. The large one relates to the base as ViT-L does to ViT-B: 4/3 as wide, twice as deep."""

    name: str
    width: int
    depth: int

    @property
    def large(self) -> "VitSize":
        return VitSize("large", self.width * 4 // 3, self.depth * 2)


class S2Vit(nn.Module):
    """Mean of a ViT's multi-scale patch features; every scale is interpolated from the image, which is the base.

    Attributes:
        width: channels of the features: the ViT's times the number of scales.
    """

    def __init__(self, size: VitSize, base: int, patch: int, scales: list[int]) -> None:
        super().__init__()
        config = ViTConfig(
            hidden_size=size.width,
            num_hidden_layers=size.depth,
            num_attention_heads=max(size.width // 32, 1),
            intermediate_size=4 * size.width,
            image_size=base,
            patch_size=patch,
        )
        self.vit: Any = ViTModel(config, add_pooling_layer=False)
        self.base, self.scales = base, scales

    @property
    def width(self) -> int:
        return self.vit.config.hidden_size * len(self.scales)

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, width) of images (B, 3, base, base), normalised."""
        tokens = multiscale_forward(
            lambda tiles: self.vit(tiles).last_hidden_state,
            images,
            img_sizes=self.scales,
            max_split_size=self.base,
            num_prefix_token=1,
        )
        return tokens[:, 1:].mean(1)


def check_vit(args: argparse.Namespace) -> tuple[VitSize, int]:
    """The base ViT of a command, and the side of its images.

    Raises:
        InputError: scales and patches that do not fit.
    """
    base = min(min(scales) for scales in args.scales)
    for scales in args.scales:
        if scales[0] != base or any(side % base for side in scales):
            raise InputError(f"--scales {','.join(map(str, scales))}: must be whole multiples of {base}, it among them")
    if base % args.patch:
        raise InputError(f"--patch {args.patch}: the smallest scale, {base} pixels, is no multiple of it")
    if args.width % 24 or args.width % max(args.width // 32, 1):
        raise InputError(f"--width {args.width}: use a multiple of 96, which 4/3 times is whole too")
    return VitSize("base", args.width, args.depth), base


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def in_memory(image_source: ImageSource, side: int) -> Tensor:
    """All images as bytes (n, 3, side, side)."""
    stacks = [images[side] for _, images in read_batches(image_source, [side], 0, 64)]
    return torch.cat(stacks).permute(0, 3, 1, 2).contiguous()


def normalised(images: Tensor) -> Tensor:
    """Bytes (n, 3, h, w) as the ViT takes them."""
    return (images.to(device()).float() / 255 - _MEAN) / _STD


def augmented(images: Tensor, smallest: float = 0.5) -> Tensor:
    """Each image's random crop, of `smallest` to all of its area, at the same size, flipped half of the time."""
    count = len(images)
    scale = torch.empty(count, 1).uniform_(math.sqrt(smallest), 1)
    shift = (1 - scale) * (2 * torch.rand(count, 2) - 1)
    flip = torch.where(torch.rand(count, 1) < 0.5, -scale, scale)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = flip[:, 0], scale[:, 0], shift
    grid = F.affine_grid(theta, list(images.shape), align_corners=False).to(images.device)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


@torch.no_grad()
def outputs(model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """What a model gives for all images (n, 3, h, w) of bytes."""
    return torch.cat([model(normalised(batch)).cpu() for batch in images.split(64)])
