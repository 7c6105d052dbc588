"""What a model sees of an image: each scale as the tower gets it, tile borders, and one spot at every resolution."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from llava_s2.model.processor import aspect_ratio, num_image_tokens

_BORDER = (255, 64, 129)
_SPOT = (255, 210, 0)


@dataclass(frozen=True)
class Scale:
    """One scale: its side in pixels, tiles along a side, and the image (RGB, side x side)."""

    side: int
    tiles: int
    image: Image.Image


@dataclass(frozen=True)
class Sight:
    """How a model looks at images; all of it is read from its config and processor.

    Attributes:
        scales: sides in pixels. tiles: along one side of each scale.
        tokens: that stand for an image in the prompt. channels: of one token before the projector.
        mode: how an image becomes a square, one of ``ASPECT_RATIOS``.
    """

    scales: tuple[int, ...]
    tiles: tuple[int, ...]
    tokens: int
    channels: int
    mode: str

    @classmethod
    def of(cls, model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> "Sight":
        """Any LLaVA's; one without an S2 tower has one scale of one tile."""
        vision: Any = model.config.vision_config
        scales = tuple(getattr(vision, "scales", None) or [vision.image_size])
        tiles = tuple(getattr(vision, "num_tiles", None) or [1])
        mode = aspect_ratio(processor, vision)
        return cls(scales, tiles, num_image_tokens(processor), vision.hidden_size, mode)


def squared(image: Image.Image, mode: str) -> Image.Image:
    """An image made square, so that no processor changes its sides: ``pad`` with grey, ``square`` cuts, ``resize``."""
    width, height = image.size
    side = min(width, height) if mode == "square" else max(width, height)
    if mode == "resize":
        return image.resize((side, side), Image.Resampling.BICUBIC)
    square = Image.new("RGB", (side, side), (127, 127, 127))
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def pyramid(image: Image.Image, sight: Sight, processor: LlavaProcessor) -> list[Scale]:
    """The image at each scale, with the pixels that the vision tower runs on (resized as the tower does)."""
    prepared = processor.image_processor
    pixels = prepared([image], return_tensors="pt")["pixel_values"].float()
    mean, std = (torch.tensor(getattr(prepared, name))[:, None, None] for name in ("image_mean", "image_std"))
    levels = []
    for side, tiles in zip(sight.scales, sight.tiles, strict=True):
        scaled = pixels
        if pixels.shape[-1] != side:
            scaled = F.interpolate(pixels, size=(side, side), mode="bicubic", align_corners=False)
        shown = ((scaled[0] * std + mean).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        levels.append(Scale(side, tiles, Image.fromarray(np.ascontiguousarray(shown))))
    return levels


def with_borders(scale: Scale, at: tuple[float, float], share: float) -> Image.Image:
    """The scale's image, pixel for pixel, the borders of its tiles and the spot of ``spot`` drawn in."""
    side = scale.side
    shown = scale.image.copy()
    draw = ImageDraw.Draw(shown)
    left, top = (min(max(centre - share / 2, 0), 1 - share) * side for centre in at)
    for edge in range(scale.tiles + 1):
        edge_at = min(round(edge * side / scale.tiles), side - 1)
        draw.line((edge_at, 0, edge_at, side - 1), fill=_BORDER)
        draw.line((0, edge_at, side - 1, edge_at), fill=_BORDER)
    draw.rectangle((left, top, left + share * side, top + share * side), outline=_SPOT, width=max(side // 160, 1))
    return shown


def spot(levels: Sequence[Scale], at: tuple[float, float], share: float, side: int) -> list[Image.Image]:
    """The same spot cut out of every scale, in that scale's own pixels blown up to ``side`` without smoothing.

    Args:
        levels: from ``pyramid``.
        at: centre of the spot, as shares (0 to 1) of the square's width and height.
        share: side of the spot as a share of the square's.
        side: of the images returned, in pixels.
    """
    left, top = (min(max(centre - share / 2, 0), 1 - share) for centre in at)
    crops = []
    for level in levels:
        x, y, right, bottom = (round(edge * level.side) for edge in (left, top, left + share, top + share))
        crops.append(level.image.crop((x, y, right, bottom)).resize((side, side), Image.Resampling.NEAREST))
    return crops


def spot_of_original(image: Image.Image, sight: Sight, at: tuple[float, float], share: float, side: int) -> Image.Image:
    """The same spot of the image itself; what the processor padded is grey."""
    width, height = image.size
    padded, cropped = (max(image.size),) * 2, (min(image.size),) * 2
    square = {"square": cropped, "resize": image.size}.get(sight.mode, padded)
    left = (width - square[0]) / 2 + min(max(at[0] - share / 2, 0), 1 - share) * square[0]
    top = (height - square[1]) / 2 + min(max(at[1] - share / 2, 0), 1 - share) * square[1]
    wide, high = max(round(share * square[0]), 1), max(round(share * square[1]), 1)
    crop = Image.new("RGB", (wide, high), (128, 128, 128))
    crop.paste(image, (-round(left), -round(top)))
    # Reduced with smoothing where the image has more pixels than are shown, blown up without where it has fewer.
    return crop.resize((side, side), Image.Resampling.NEAREST if wide < side else Image.Resampling.LANCZOS)
