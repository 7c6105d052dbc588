"""What is kept of images, and by what it is known."""

import numpy as np
import torch
from PIL import Image

from llava_s2.serve.tower_cache import FeatureCache, KeyedImage


def test_the_cache_keeps_the_latest_within_its_bytes():
    cache = FeatureCache(100 * 4)
    for key in "abc":
        cache.put(key, torch.full((40,), ord(key), dtype=torch.float32))
        cache.get("a")
    assert [cache.get(key) is not None for key in "abc"] == [True, False, True]
    assert cache.bytes == 320
    cache.put("large", torch.zeros(101))
    assert cache.get("large") is None and cache.get("c")[0] == ord("c")


def test_a_picture_is_known_by_its_pixels_and_their_shape():
    pixels = np.arange(6 * 4 * 3, dtype=np.uint8)
    wide, tall = (Image.fromarray(pixels.reshape(shape)) for shape in ((4, 6, 3), (6, 4, 3)))
    other = wide.copy()
    other.putpixel((5, 3), (0, 0, 0))
    assert KeyedImage(wide).key == KeyedImage(wide.copy()).key
    assert len({KeyedImage(image).key for image in (wide, tall, other)}) == 3
