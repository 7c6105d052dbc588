"""Files that pose as pictures, or are more than one: what a server on the open net is sent."""

import functools
import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image


def encoded(image: Image.Image | None = None, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    (image or noise()).save(file, kind, **options)
    return file.getvalue()


def noise(side: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8))


def png(width: int, height: int, body: bytes = b"", bits: int = 8, color: int = 2, extra: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@functools.cache
def bomb(side: int) -> bytes:
    """A whole and correct PNG of black pixels, a thousandth of their size packed."""
    packer = zlib.compressobj(6)
    row = bytes(1 + 3 * side)
    return png(side, side, b"".join(packer.compress(row) for _ in range(side)) + packer.flush())


def claimed_sides(kind: str, side: int) -> bytes:
    """A small file with another size in its header."""
    data = bytearray(encoded(Image.new("RGB", (8, 8)), kind))
    if kind == "JPEG":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", side, side)
    elif kind == "GIF":
        data[6:10] = struct.pack("<HH", side, side)
    return bytes(data)


# What is refused, each with a word of the refusal.
HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "an empty file"),
    "text": (lambda: b"hello", "not an image"),
    "html": (lambda: b"<!DOCTYPE html><script>alert(1)</script>", "HTML"),
    "svg": (lambda: b'\n<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>', "SVG"),
    "svg with entities": (
        lambda: b'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg>&x;</svg>',
        "SVG",
    ),
    "pdf": (lambda: b"%PDF-1.7\n%%EOF", "a PDF"),
    "postscript": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run", "not an image"),
    "50,000 pixels wide": (lambda: png(50_000, 50_000, b"\0"), "pixels"),
    "wide JPEG": (lambda: claimed_sides("JPEG", 50_000), "pixels"),
    "wide GIF": (lambda: claimed_sides("GIF", 50_000), "pixels"),
    "text bomb": (
        lambda: png(8, 8, zlib.compress(bytes(200)), extra=chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 27)))),
        "damaged",
    ),
    "fill bytes": (lambda: b"\xff\xd8" + b"\xff" * (1 << 20), "damaged"),
    "too large": (lambda: encoded() + bytes(20 << 20), "larger than 20 MB"),
    "cut PNG": (lambda: encoded()[:5000], "truncated"),
    "cut JPEG": (lambda: encoded(kind="JPEG")[:1500], "truncated"),
    "cut JPEG header": (lambda: encoded(kind="JPEG")[:30], "truncated"),
    "cut WebP": (lambda: encoded(kind="WEBP", lossless=True)[:5000], "truncated|not an image"),
    "cut GIF": (lambda: encoded(kind="GIF")[:2000], "truncated"),
    "damaged PNG": (lambda: encoded()[:300] + b"\0\0\0\0" + encoded()[304:], "damaged"),
}
