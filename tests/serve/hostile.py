"""Files that pose as pictures, or are more than one: what a server on the open net is sent."""

import functools
import io
import struct
import zipfile
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


def zip_file() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("payload.class", "x" * 100)
    return file.getvalue()


def animated(kind: str) -> bytes:
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (0, 120, 250)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:])


def claimed_sides(kind: str, side: int) -> bytes:
    """A small file with another size in its header."""
    data = bytearray(encoded(Image.new("RGB", (8, 8)), kind))
    if kind == "JPEG":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", side, side)
    elif kind == "GIF":
        data[6:10] = struct.pack("<HH", side, side)
    return bytes(data)


# Each with a word of the refusal.
HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "no picture"),
    "text": (lambda: b"hello", "no picture"),
    "html": (lambda: b"<!DOCTYPE html><script>alert(1)</script>", "HTML"),
    "svg": (lambda: b'\n<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>', "SVG"),
    "svg with entities": (
        lambda: b'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg>&x;</svg>',
        "SVG",
    ),
    "pdf": (lambda: b"%PDF-1.7\n%%EOF", "a PDF"),
    "postscript": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run", "no picture"),
    "tiff": (lambda: encoded(kind="TIFF"), "no picture of a known kind"),
    "icon": (lambda: encoded(kind="ICO"), "no picture of a known kind"),
    "50,000 pixels wide": (lambda: png(50_000, 50_000, b"\0"), "50000 x 50000|more pixels"),
    "50,000 x 1": (lambda: png(50_000, 1, zlib.compress(bytes(150_001))), "50000 x 1 pixels"),
    "wide JPEG": (lambda: claimed_sides("JPEG", 50_000), "pixels"),
    "wide GIF": (lambda: claimed_sides("GIF", 50_000), "pixels"),
    "bomb": (lambda: bomb(9000), "9000 x 9000"),
    "text bomb": (
        lambda: png(8, 8, zlib.compress(bytes(200)), extra=chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 27)))),
        "damaged",
    ),
    "many chunks": (lambda: png(8, 8, b"", extra=chunk(b"tEXt", b"a\0b") * 110_000), "too many parts"),
    "many GIF blocks": (lambda: encoded(kind="GIF")[:-1] + b"\x21\xfe" + b"\1a" * 110_000 + b"\0;", "too many parts"),
    "fill bytes": (lambda: b"\xff\xd8" + b"\xff" * (1 << 20), "too many parts"),
    "too large": (lambda: encoded() + bytes(20 << 20), "larger than 20 MB"),
    "cut PNG": (lambda: encoded()[:5000], "truncated"),
    "cut JPEG": (lambda: encoded(kind="JPEG")[:1500], "truncated"),
    "cut JPEG header": (lambda: encoded(kind="JPEG")[:30], "truncated"),
    "cut WebP": (lambda: encoded(kind="WEBP", lossless=True)[:5000], "truncated"),
    "cut GIF": (lambda: encoded(kind="GIF")[:2000], "truncated"),
    "damaged PNG": (lambda: encoded()[:300] + b"\0\0\0\0" + encoded()[304:], "damaged"),
    "PNG and ZIP": (lambda: encoded() + zip_file(), "after the picture's end"),
    "JPEG and ZIP": (lambda: encoded(kind="JPEG") + zip_file(), "an archive"),
    "JPEG and PDF": (lambda: encoded(kind="JPEG", comment=b"%PDF-1.4 1 0 obj"), "a PDF"),
    "JPEG and RAR": (lambda: encoded(kind="JPEG") + b"Rar!\x1a\x07\0" + bytes(9), "an archive"),
    "JPEG and PHP": (lambda: encoded(kind="JPEG", comment=b"<?php system($_GET[0]); ?>"), "markup"),
    "PNG and HTML": (lambda: png(8, 8, extra=chunk(b"tEXt", b"a\0<SCRIPT src=//x>")), "markup"),
    "GIF and script": (lambda: encoded(kind="GIF") + b"*/=1;alert(1)", "after the picture's end"),
    "WebP and tail": (lambda: encoded(kind="WEBP") + b"tail", "after the picture's end"),
    "animated PNG": (lambda: animated("PNG"), "has 3 frames"),
    "animated GIF": (lambda: animated("GIF"), "several frames"),
    "animated WebP": (lambda: animated("WEBP"), "has 3 frames"),
    "16 bits": (lambda: encoded(Image.fromarray(np.full((8, 8), 40_000, np.uint16))), "16 bits"),
    "16 bits, colour": (lambda: png(2, 1, zlib.compress(bytes(13)), bits=16), "16 bits"),
    "CMYK": (lambda: encoded(Image.new("CMYK", (8, 8)), "JPEG"), "CMYK"),
}
