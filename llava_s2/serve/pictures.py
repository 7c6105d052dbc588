"""Images from strangers."""

import re

from PIL import Image

from llava_s2.data.image_decoding import decode_image
from llava_s2.errors import InputError

MAX_BYTES = 20 << 20
MAX_SIDE = 4096


def read_picture(data: bytes, name: str = "image") -> Image.Image:
    """Decodes an upload that nobody vouches for; see `decode_image`. A larger one is reduced to ``MAX_SIDE``.

    Args:
        data: the file's bytes, at most ``MAX_BYTES``.
        name: what to call it in an error.

    Raises:
        InputError: not an image, or too large.
    """
    last = re.split(r"[/\\]", name)[-1]
    name = "".join(letter if letter.isprintable() else "?" for letter in last)[:80] or "image"
    if len(data) > MAX_BYTES:
        raise InputError(f"{name}: is larger than {MAX_BYTES >> 20} MB; shrink it")
    return decode_image(data, name=name, max_side=MAX_SIDE).image
