"""Images padded while they are resized: the stock processor's pixels, without the square."""

import resource

import numpy as np
import pytest
from PIL import Image
from transformers import LlavaImageProcessorPil

from llava_s2.s2.image_processor import S2ImageProcessor

OPTIONS = {
    "do_pad": True, "size": {"shortest_edge": 96}, "crop_size": {"height": 96, "width": 96},
    "image_mean": [0.1, 0.5, 0.9], "image_std": [0.3, 0.2, 0.25],
}  # fmt: skip
SHAPES = [(1, 700), (700, 1), (96, 96), (96, 40), (50, 30), (31, 32), (600, 301), (257, 640), (513, 96), (96, 513)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("more", [{}, {"do_pad": False}, {"size": {"height": 96, "width": 96}}, {"do_resize": False}])
def test_pixels_are_the_stock_processors(shape: tuple[int, int], more: dict) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8))
    options = OPTIONS | more
    found = S2ImageProcessor(**options)([image, image], return_tensors="np")["pixel_values"]
    expected = LlavaImageProcessorPil(**options)([image, image], return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(found, expected)


def test_a_long_image_takes_no_square() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    S2ImageProcessor(**OPTIONS)(Image.new("RGB", (20_000, 1)), return_tensors="np")  # a square of 1.2 GB
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000
