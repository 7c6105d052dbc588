"""Pictures from strangers: told by their content, bounded before anything is decoded, and nothing but a picture."""

import io
import re
import struct
import zipfile
from collections.abc import Callable, Iterator

from PIL import Image

from llava_s2.data.image_decoding import open_image
from llava_s2.errors import InputError

MAX_BYTES = 20 << 20
# The processor pads a picture to a square of its longer side, so that side bounds the memory: 8192 x 8192 x 3 bytes.
MAX_SIDE = 8192
_MAX_PARTS = 100_000  # each costs Pillow a step; a GIF of 20 MB has 82,000 blocks, a PNG some 2,500 chunks

# What a browser or an interpreter would run, wherever in a file it stands; XMP and draw.io's metadata are not among it.
_MARKUP = re.compile(rb"<(?:script|html|iframe|!doctype|\?php|svg[\s>])", re.IGNORECASE)
_PDF, _PDF_WITHIN = b"%PDF-", 1024  # readers look for it there
_RAR = b"Rar!\x1a\x07"


def read_picture(data: bytes, name: str = "image") -> Image.Image:
    """Decodes an upload that nobody vouches for.

    Taken are still 8-bit PNG, JPEG, WebP and GIF, told by their content, of at most ``MAX_BYTES`` and with no side over
    ``MAX_SIDE``, which the header is asked before a pixel is decoded. Not taken is a file that is something else too: a
    ZIP, RAR or PDF, markup, or data after the end of a PNG, GIF or WebP (after that of a JPEG, phones keep films).

    Args:
        data: the file's bytes.
        name: what to call it in an error.

    Returns:
        The picture in mode ``RGB``, upright; see ``open_image`` for palettes, alpha and EXIF.

    Raises:
        InputError: not such a picture, damaged, animated, of 16 bits a channel, or CMYK.
    """
    name = _harmless(name)
    try:
        kind = _kind(data)
        _check_parts(data, kind)
        _check_nothing_else(data)
        _check_size(data, kind)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    file = io.BytesIO(data)
    file.name = name
    return open_image(file, [kind])


def _harmless(name: str) -> str:
    """The last part of a file's name, short and on one line."""
    last = re.split(r"[/\\]", name)[-1]
    return "".join(letter if letter.isprintable() else "?" for letter in last)[:80] or "image"


def _kind(data: bytes) -> str:
    if len(data) > MAX_BYTES:
        raise InputError(f"is larger than {MAX_BYTES >> 20} MB; shrink it")
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    start = data[:_PDF_WITHIN]
    seen = "a PDF" if _PDF in start else "SVG, HTML or other text" if re.match(rb"[\s\xef\xbb\xbf]*<", start) else ""
    raise InputError(f"is {seen or 'no picture of a known kind'}; send a PNG, JPEG, WebP or GIF")


def _check_parts(data: bytes, kind: str) -> None:
    """Walks over a file's parts without decoding them, to where the picture ends."""
    end, frames = 0, 0
    for count, (end, is_frame) in enumerate(_PARTS[kind](data)):
        frames += is_frame
        if count > _MAX_PARTS:
            raise InputError("is made of too many parts; save it anew")
        if frames > 1:
            raise InputError("has several frames; save the frame that is meant as a still picture")
        if end > len(data):
            raise InputError("truncated image; send it again")
    if kind != "JPEG" and data[end:].strip(b"\0\r\n"):
        raise InputError(f"has {len(data) - end} bytes after the picture's end; save it anew")


def _png_parts(data: bytes) -> Iterator[tuple[int, bool]]:
    """Each part's end, and whether a further frame of the picture begins there."""
    end, kind = 8, b""
    while kind != b"IEND":
        if end + 8 > len(data):
            yield len(data) + 1, False
            return
        length, kind = struct.unpack_from(">I4s", data, end)
        end += length + 12
        yield end, False


def _jpeg_parts(data: bytes) -> Iterator[tuple[int, bool]]:
    """Up to the first scan: where scans end, only decoding tells."""
    end, marker = 2, 0
    while marker != 0xDA:
        end = data.find(b"\xff", end)
        if end < 0 or end + 4 > len(data):
            yield len(data) + 1, False
            return
        marker = data[end + 1]
        alone = marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD9
        end += (1 if marker == 0xFF else 2) if alone else 2 + int.from_bytes(data[end + 2 : end + 4], "big")
        yield end, False


def _gif_parts(data: bytes) -> Iterator[tuple[int, bool]]:
    def after_table(flags_at: int, start: int) -> int:
        flags = data[flags_at] if flags_at < len(data) else 0
        return start + (3 << ((flags & 7) + 1) if flags & 0x80 else 0)

    end = after_table(10, 13)
    while end < len(data) and data[end] != 0x3B:
        is_frame = data[end] == 0x2C
        if not is_frame and data[end] != 0x21:
            raise InputError("damaged image; send it again")
        end = after_table(end + 9, end + 10) + 1 if is_frame else end + 2
        yield end, is_frame
        while end < len(data) and data[end]:  # blocks of at most 255 bytes, up to an empty one
            end += data[end] + 1
            yield end, False
        end += 1
    yield end + 1, False


def _webp_parts(data: bytes) -> Iterator[tuple[int, bool]]:
    length = int.from_bytes(data[4:8], "little")
    yield 8 + length + length % 2, False


_PARTS: dict[str, Callable[[bytes], Iterator[tuple[int, bool]]]] = {
    "PNG": _png_parts,
    "JPEG": _jpeg_parts,
    "GIF": _gif_parts,
    "WEBP": _webp_parts,
}


def _check_nothing_else(data: bytes) -> None:
    if _PDF in data[:_PDF_WITHIN]:
        other = "a PDF"
    elif _RAR in data or zipfile.is_zipfile(io.BytesIO(data)):
        other = "an archive"
    elif _MARKUP.search(data):
        other = "markup"
    else:
        return
    raise InputError(f"is a picture and {other} in one file; save the picture anew")


def _check_size(data: bytes, kind: str) -> None:
    try:
        with Image.open(io.BytesIO(data), formats=[kind]) as image:
            width, height = image.size
    except Image.DecompressionBombError:
        raise InputError(f"has more pixels than {MAX_SIDE} x {MAX_SIDE}; shrink it") from None
    except Exception:
        return  # damaged: open_image says how
    if max(width, height) > MAX_SIDE:
        raise InputError(f"has {width} x {height} pixels, and a side may have {MAX_SIDE}; shrink it")
