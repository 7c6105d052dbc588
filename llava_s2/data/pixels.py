"""Images as bytes from the loader to the device, and as what the tower takes only there."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def image_bytes(image_processor: Any, images: list[Image.Image]) -> Tensor:
    """Everything that an image processor does to images but scaling and normalising: uint8 (images, 3, S, S)."""
    return image_processor(images, return_tensors="pt", do_rescale=False, do_normalize=False)["pixel_values"]


class Normalizer:
    """Turns `image_bytes` into the image processor's own ``pixel_values``, bit by bit, on the device they are on.

    A byte of a channel has one normalised value, so a table of 256 values a channel, filled by the image processor
    itself, holds them all.
    """

    def __init__(self, image_processor: Any) -> None:
        ramp = np.broadcast_to(np.arange(256, dtype=np.uint8).reshape(16, 16), (3, 16, 16))
        as_it_is = {"do_resize": False, "do_center_crop": False, "do_pad": False, "input_data_format": "channels_first"}
        made = image_processor(ramp, return_tensors="pt", **as_it_is)["pixel_values"]
        self.table: Tensor = made.view(3, 256)  # float32

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 (images, 3, S, S) to float32 of that shape."""
        self.table = self.table.to(pixels.device)
        return torch.stack([self.table[channel][pixels[:, channel].int()] for channel in range(3)], dim=1)
