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


def _deflated(row: bytes, rows: int) -> bytes:
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(row) for _ in range(rows)) + packer.flush()


def _jpeg(*inserted: bytes, side: int = 64, **options) -> bytes:
    data = encoded(noise(side), "JPEG", **options)
    return data[:2] + b"".join(inserted) + data[2:]


def _segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def _tiff_of_one_strip(side: int) -> bytes:
    """Every row is the same few bytes of the file."""
    strip = zlib.compress(bytes(3 * side))
    tags = [(256, side), (257, side), (258, 8), (259, 8), (262, 2), (277, 3), (278, 1), (284, 1)]
    at = 10 + 12 * (len(tags) + 2) + 4
    entries = [(tag, 3, 1, value) for tag, value in tags]
    entries += [(273, 4, side, at), (279, 4, side, at + 4 * side)]
    directory = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    head = b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + bytes(4)
    return head + struct.pack("<I", at + 8 * side) * side + struct.pack("<I", len(strip)) * side + strip


def _directories(count: int) -> bytes:
    """A TIFF whose first directory leads to itself, or to many copies."""
    data = bytearray(encoded(Image.new("RGB", (8, 8)), "TIFF"))
    (start,) = struct.unpack_from("<I", data, 4)
    end = start + 2 + 12 * struct.unpack_from("<H", data, start)[0]
    one = bytes(data[start:end])
    at = end
    for _ in range(count):
        struct.pack_into("<I", data, at, len(data))
        at = len(data) + len(one)
        data += one + bytes(4)
    struct.pack_into("<I", data, at, 0 if count else start)
    return bytes(data)


def _frames(kind: str, count: int, **options) -> bytes:
    frames = [Image.new("RGB", (32, 32), (at % 255, at // 255, 0)) for at in range(count)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)


def _scans(side: int, count: int) -> bytes:
    progressive = encoded(noise(side), "JPEG", progressive=True)
    return progressive[:-2] + b"\xff\xda\0\x08\x01\x01\0\x01\x3f\x10\0\0" * count + b"\xff\xd9"


# What costs more than its size says, by a side in pixels; some are opened, some refused.
COSTLY: dict[str, Callable[[int], bytes]] = {
    "PNG of zeros": bomb,
    "PNG of 16 bits": lambda side: png(side, side, _deflated(bytes(1 + 8 * side), side), bits=16, color=6),
    "PNG of one bit": lambda side: png(8 * side, side, _deflated(bytes(1 + side), side), bits=1, color=0),
    "PNG in a line": lambda side: png(side * side // 8, 8, _deflated(bytes(1 + 3 * (side * side // 8)), 8)),
    "PNG in a column": lambda side: png(1, side * 8, _deflated(bytes(4), side * 8)),
    "PNG of chunks": lambda side: png(8, 8, zlib.compress(bytes(200)), extra=chunk(b"abCd", b"") * side * 50),
    "PNG of texts": lambda side: png(
        8, 8, zlib.compress(bytes(200)), extra=chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(60_000))) * side
    ),
    "PNG with a profile": lambda side: png(
        8, 8, zlib.compress(bytes(200)), extra=chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(side * side)))
    ),
    "PNG of frames": lambda side: _frames("PNG", side // 8),
    "GIF of zeros": lambda side: encoded(Image.new("P", (side, side)), "GIF"),
    "GIF of frames": lambda side: _frames("GIF", side // 8),
    "WebP of zeros": lambda side: encoded(Image.new("RGB", (side, side)), "WEBP", lossless=True, method=0),
    "WebP of frames": lambda side: _frames("WEBP", side // 8),
    "AVIF of frames": lambda side: _frames("AVIF", side // 100, speed=10),
    "TIFF of zeros": lambda side: encoded(Image.new("RGB", (side, side)), "TIFF", compression="tiff_adobe_deflate"),
    "TIFF of JPEG": lambda side: encoded(Image.new("RGB", (side, side)), "TIFF", compression="jpeg"),
    "TIFF of LZW": lambda side: encoded(Image.new("RGB", (side, side)), "TIFF", compression="tiff_lzw"),
    "TIFF of one strip": _tiff_of_one_strip,
    "TIFF in a circle": lambda side: _directories(0),
    "TIFF of directories": lambda side: _directories(side),
    "icons": lambda side: struct.pack("<HHH", 0, 1, side) + struct.pack("<8xII", 99, 6) * side,
    "icon of zeros": lambda side: struct.pack("<HHH4xHHII", 0, 1, 1, 1, 32, len(bomb(side)), 22) + bomb(side),
    "PSD of layers": lambda side: (
        b"8BPS"
        + struct.pack(">H6xHIIHH8xII", 1, 3, 64, 64, 8, 3, 2 + 46 * side + 4, 2 + 46 * side)
        + struct.pack(">h", side)
        + (struct.pack(">iiiiH", 0, 0, 9000, 9000, 0) + b"8BIMnorm" + bytes(4) + struct.pack(">I12x", 12)) * side
        + bytes(2 + 3 * 64 * 64)
    ),
    "QOI of runs": lambda side: b"qoif" + struct.pack(">IIBB", side, side, 4, 0) + b"\xfd" * (side * side // 60),
    "TGA of runs": lambda side: (
        struct.pack("<BBB5xHHHHBB", 0, 0, 10, 0, 0, side, side, 24, 0) + b"\xff\0\0\0" * (side * side // 128)
    ),
    "PPM in words": lambda side: f"P3 {side} {side} 255 ".encode() + b"1 " * (3 * min(side, 1500) ** 2),
    "PPM of a comment": lambda side: b"P6 #" + b"x" * (side * 1000),
    "JPEG of zeros": lambda side: encoded(Image.new("RGB", (side, side)), "JPEG", progressive=True),
    "JPEG of scans": lambda side: _scans(side // 4, 85),
    "JPEG of more scans": lambda side: _scans(side // 4, 3000),
    "JPEG of comments": lambda side: _jpeg(*[_segment(0xFE, b"")] * min(side, 9000)),
    "JPEG of profiles": lambda side: _jpeg(*[_segment(0xE2, bytes(65_533))] * (side // 30)),
    "JPEG of XMP": lambda side: _jpeg(
        *[_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + b"tiff:Orientation" * 4000)] * (side // 30)
    ),
    "JPEG of EXIF": lambda side: _jpeg(
        _segment(
            0xE1,
            b"Exif\0\0II*\0"
            + struct.pack("<IH", 8, 2000)
            + struct.pack("<HHII", 0x8000, 7, 30_000, 8) * 2000
            + bytes(30_000),
        )
    ),
    "JPEG of ends": lambda side: encoded(kind="JPEG") + b"\xff\xd9" * side * 500,
    "JPEG of restarts": lambda side: encoded(kind="JPEG")[:-2] + b"\xff\xd0" * side * 500,
    "a film": lambda side: b"\0\0\0\x18ftypmp42" + bytes(side * 100),
    "HEIC of nothing": lambda side: b"\0\0\0\x18ftypheic" + b"\xff" * side * 100,
    "chance": lambda side: np.random.default_rng(side).bytes(side * 100),
}
