"""The image processor of a LLaVA-S2: stock LLaVA's, always on PIL."""

from typing import Any

import numpy as np
from PIL import Image
from transformers import BatchFeature, LlavaImageProcessorPil

_BAND = 256  # rows that are padded at a time


class S2ImageProcessor(LlavaImageProcessorPil):
    """LLaVA's image preparation with PIL's resampling, which the checkpoints were trained on.

    It has a name of its own because `AutoProcessor` would load stock LLaVA's class with torchvision, whose resampling
    rounds otherwise: up to two of 255 levels, and logits that differ in the third decimal.

    An image is padded to a square while it is resized: the pixels are the stock class's, which makes the whole square
    first, 300 MB for one of 10,000 x 1 pixels.
    """

    def _preprocess(self, images: list[np.ndarray], **options: Any) -> BatchFeature:  # type: ignore[override]
        side = getattr(options["size"], "shortest_edge", None)
        if options.get("do_pad") and options.get("do_resize") and side and options.get("image_mean"):
            colour = tuple(int(mean * 255) for mean in options["image_mean"])
            fit = all(image.dtype == np.uint8 and image.shape[0] == 3 for image in images)
            if fit and len(colour) == 3:
                images = [resized_square(image, side, colour, options.get("resample")) for image in images]
                options |= {"do_pad": False, "do_resize": False}
        return super()._preprocess(images, **options)


def resized_square(image: np.ndarray, side: int, colour: tuple[int, ...], resample: Any) -> np.ndarray:
    """An image padded to a square in its middle and resized: PIL's pixels, whose two passes are made one by one.

    Args:
        image: (3, h, w), uint8. side: of the result, in pixels. colour: of the padding.

    Returns:
        (3, side, side), uint8.
    """
    height, width = image.shape[1:]
    longest = max(height, width)
    top, left = (longest - height) // 2, (longest - width) // 2
    across = np.empty((longest, side, 3), np.uint8)  # resized along its rows
    across[:] = colour
    for start in range(0, height, _BAND):
        rows = image[:, start : start + _BAND].transpose(1, 2, 0)
        padded = np.empty((len(rows), longest, 3), np.uint8)
        padded[:] = colour
        padded[:, left : left + width] = rows
        band = Image.fromarray(padded).resize((side, len(rows)), resample)
        across[top + start : top + start + len(rows)] = np.asarray(band)
    return np.asarray(Image.fromarray(across).resize((side, side), resample)).transpose(2, 0, 1)
