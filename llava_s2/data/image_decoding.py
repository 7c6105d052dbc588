"""The one module that opens images, for training, evaluation, chat, page and API: upright 8-bit RGB, or a clear error.

What a phone, a scanner or an editor writes is opened, and every conversion that changes what is seen is reported. A
file's metadata is never parsed as a whole: of EXIF the orientation alone is read, because a small file can describe
gigabytes of tags.
"""

import re
import stat
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageCms, JpegImagePlugin, TiffImagePlugin, UnidentifiedImageError

from llava_s2.errors import InputError, one_line

CONVERSIONS = {
    "orientation": "turned as EXIF says",
    "transparency": "transparent parts shown on white",
    "first_frame": "first of several frames",
    "sixteen_bits": "16 bits a channel reduced to 8",
    "cmyk": "printing inks (CMYK) converted to RGB",
    "lab": "Lab colours converted to RGB",
    "heif": "HEIF, decoded by pillow-heif",
    "reduced": "reduced to the largest side allowed",
}
"""What ``DecodedImage.conversions`` names, and what each means."""

MAX_PIXELS = 256_000_000  # more than any phone's sensor has
_ANY_FILES_PIXELS, _PIXELS_PER_BYTE = 16_000_000, 4000  # blank paper makes a thousand pixels a byte
_MAX_SCANS = 100  # of a progressive JPEG; encoders write about ten, and each costs a pass over the image
_MAX_SEGMENTS = 10_000  # of a JPEG, before its first scan
_MAX_IFD_ENTRIES = 4096
# Not among them: EPS and WMF, which run programs, and films.
_FORMATS = (
    *("AVIF", "BMP", "DDS", "DIB", "GIF", "ICNS", "ICO", "JPEG2000", "PCX", "PNG", "PPM", "PSD", "QOI", "SGI", "TGA"),
    *("TIFF", "WEBP"),
)
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Pillow's name of what a decoder reads, such as RGB;16B in a PNG, of which it keeps the upper 8 bits by itself.
_SIXTEEN_BITS = re.compile(r";16[BLN]?")
_libtiff_switch = threading.Lock()

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # the bounds are here


@dataclass(frozen=True)
class DecodedImage:
    """An image and what was done to it.

    Attributes:
        image: mode ``RGB``.
        conversions: keys of ``CONVERSIONS``, in the order in which they were done.
    """

    image: Image.Image
    conversions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Embedded:
    """An image inside a data file, read only when it is its turn.

    Attributes:
        name: says where, in errors; no other image of the data has it.
        read: gives the image file's bytes.
    """

    name: str
    read: Callable[[], bytes] = field(compare=False, repr=False)

    def decode(self, *, apply_orientation: bool = True) -> DecodedImage:
        """Reads it as `decode_image` does. Raises InputError, with the image's name."""
        return decode_image(self.read(), name=self.name, apply_orientation=apply_orientation)

    def open(self) -> Image.Image:
        """Reads it as `open_image` does. Raises InputError, with the image's name."""
        return self.decode().image


def open_image(source: str | Path | BinaryIO | bytes) -> Image.Image:
    """The image of `decode_image`, without the list of conversions."""
    return decode_image(source).image


def decode_image(
    source: str | Path | BinaryIO | bytes,
    *,
    name: str | None = None,
    apply_orientation: bool = True,
    max_side: int | None = None,
) -> DecodedImage:
    """Reads one image.

    Args:
        source: a file's path, an open binary file, or a file's bytes.
        name: what to call it in an error; the path or the open file's name unless given.
        apply_orientation: whether to turn the image as its EXIF orientation says. The benchmarks' own evaluation code
            does not. (Pillow and libheif turn TIFF and HEIF files in any case.)
        max_side: a larger image is reduced to this side, keeping its shape: a JPEG while it is decoded, others after.

    Returns:
        The image in mode ``RGB``, of several frames the first. Transparent parts are composited on white, so that a
        colour which is stored under them is never seen.

    Raises:
        InputError: no such file, not an image, truncated or damaged, more than ``MAX_PIXELS``, 32-bit pixels whose
            range is not known, HEIF without pillow-heif, or made to cost much more than an image of its size.
    """
    if name is None:
        name = str(source) if isinstance(source, str | Path) else str(getattr(source, "name", "image"))
    try:
        data = _read(source)
        done: list[str] = []
        image, orientation = _open(data, done, max_side)
        return _finish(image, orientation if apply_orientation else 1, done, max_side)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    except UnidentifiedImageError:
        raise InputError(f"{name}: {_not_an_image(data)}") from None
    except (Image.DecompressionBombError, MemoryError) as error:
        raise InputError(f"{name}: too many pixels to open safely ({str(error) or 'no memory'}); shrink it") from None
    except Exception as error:  # Pillow's decoders raise anything from OSError to struct.error on damaged data
        reason = one_line(error, 200) or type(error).__name__
        raise InputError(f"{name}: truncated or damaged image ({reason}); fetch it again or drop its record") from None


def _read(source: str | Path | BinaryIO | bytes) -> bytes:
    if isinstance(source, bytes):
        return source
    if not isinstance(source, str | Path):
        return source.read()
    try:
        if not stat.S_ISREG(Path(source).stat().st_mode):  # a pipe would be waited for, a device never end
            raise InputError("cannot be read (a folder, a pipe or a device, and no file)")
        return Path(source).read_bytes()
    except FileNotFoundError:
        raise InputError("no such image file") from None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})") from None


def _not_an_image(data: bytes) -> str:
    """Says what a file is that Pillow does not know, where it is something that people do give."""
    if not data:
        return "is an empty file, not an image; fetch it again or drop its record"
    start = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n")
    kind = (
        "is a PDF, " if start.startswith(b"%PDF-") else "is SVG, HTML or other text, " if start.startswith(b"<") else ""
    )
    return f"{kind}not an image in a format that is opened here; replace it or drop its record"


def _open(data: bytes, done: list[str], max_side: int | None) -> tuple[Image.Image, int]:
    """The image, not decoded yet where that can wait, and its orientation."""
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS and b"avif" not in data[8:48]:
        done.append("heif")
        return _open_heif(data), 1
    image: Image.Image
    if data.startswith(b"\xff\xd8\xff"):
        data, exif, xmp = _strip_jpeg(data)
        jpeg = image = JpegImagePlugin.JpegImageFile(BytesIO(data))
        _check_pixels(image.size, len(data))
        if max_side is not None and max(image.size) > max_side:
            width, height = (side * max_side // max(image.size) for side in image.size)
            jpeg.draft(None, (max(width, 1), max(height, 1)))
            done.append("reduced")
        return image, _orientation(exif, xmp)
    if data[:4] in (b"II*\0", b"MM\0*"):
        _check_tiff(data)
    image = Image.open(BytesIO(data), formats=_FORMATS)
    _check_pixels(image.size, len(data))
    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(262) == 6 and image.tag_v2.get(259) == 1:
        image = _open_with_libtiff(data)  # Pillow takes uncompressed YCbCr for four channels
    if image.mode.startswith("I;16") or _SIXTEEN_BITS.search(str(getattr(image, "tile", ""))):
        done.append("sixteen_bits")
    if getattr(image, "is_animated", False):
        done.append("first_frame")
    exif, xmp = image.info.get("exif", b""), image.info.get("xmp", b"")
    if "exif" not in image.info and image.format == "PNG":  # it may stand behind the pixels
        image.load()
        exif, xmp = image.info.get("exif", b""), image.info.get("xmp") or image.info.get("XML:com.adobe.xmp", b"")
        if not exif and (raw := image.info.get("Raw profile type exif")):  # ImageMagick's way
            exif = bytes.fromhex("".join(raw.split("\n")[3:]))
    return image, _orientation(exif, xmp.encode() if isinstance(xmp, str) else xmp)


def _open_heif(data: bytes) -> Image.Image:
    try:
        import pillow_heif
    except ImportError:
        raise InputError(
            "is a HEIC image (an iPhone's default), which needs pillow-heif: pip install 'llava-s2[heif]', or convert "
            "it to JPEG"
        ) from None
    heif = pillow_heif.open_heif(BytesIO(data))
    _check_pixels(heif.size, len(data))
    return heif.to_pillow()


def _open_with_libtiff(data: bytes) -> Image.Image:
    with _libtiff_switch:
        TiffImagePlugin.READ_LIBTIFF = True
        try:
            return Image.open(BytesIO(data), formats=["TIFF"])
        finally:
            TiffImagePlugin.READ_LIBTIFF = False


def _check_pixels(size: tuple[int, int], length: int) -> None:
    """Refuses what has too many pixels, in all or for a file of ``length`` bytes, before anything is decoded."""
    width, height = size
    if width * height > min(MAX_PIXELS, _ANY_FILES_PIXELS + _PIXELS_PER_BYTE * length):
        raise InputError(f"has {width} x {height} pixels, too many for a file of {length} bytes; shrink it")


def _strip_jpeg(data: bytes) -> tuple[bytes, bytes, bytes]:
    """A JPEG without its metadata, then its EXIF and its XMP: Pillow would parse all EXIF tags to learn the dpi.

    Raises:
        InputError: it is cut off, or has more scans than any encoder writes.
    """
    kept, exif, xmp, at = [data[:2]], b"", b"", 2
    for _ in range(_MAX_SEGMENTS):
        fill = re.compile(rb"\xff+").search(data, at)
        at = fill.end() - 1 if fill else len(data)
        if at + 4 > len(data):
            raise InputError("truncated or damaged image; fetch it again or drop its record")
        marker, end = data[at + 1], at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:  # no length follows
            at += 2
            continue
        if marker == 0xDA:
            break
        body = data[at + 4 : end]
        if marker == 0xE1 and body.startswith(b"Exif\0\0"):
            exif = exif or body
        elif marker == 0xE1 and body.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
            xmp = xmp or body
        elif marker < 0xE0 or marker == 0xEE or body.startswith(b"JFIF\0"):  # Adobe's and JFIF's tell the colours
            kept.append(data[at:end])
        at = end
    else:
        raise InputError("is made of too many parts; save it anew")
    scans = data.count(b"\xff\xda", at, data.find(b"\xff\xd9", at))
    if scans > _MAX_SCANS:
        raise InputError(f"is a JPEG of {scans} scans, which no encoder writes; save it anew")
    return b"".join([*kept, data[at:]]), exif, xmp


def _orientation(exif: bytes, xmp: bytes) -> int:
    """EXIF's orientation, 1 to 8, of EXIF that may be anything; without one, the orientation that XMP names."""
    exif = exif.removeprefix(b"Exif\0\0")
    for tag, _, _, value in _ifd(exif):
        if tag == 0x0112:
            return value if value in _TURNS else 1
    found = re.search(rb'tiff:Orientation(?:="|>)([1-8])', xmp)
    return int(found[1]) if found else 1


def _ifd(tiff: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Tag, type, count and value (or place) of the entries of a TIFF's first directory; stops where it is damaged."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    try:
        if order is None:
            return
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, start)
        for at in range(start + 2, start + 2 + 12 * min(count, _MAX_IFD_ENTRIES), 12):
            tag, kind, number = struct.unpack_from(f"{order}HHI", tiff, at)
            (value,) = struct.unpack_from(order + {1: "B", 3: "H"}.get(kind, "I"), tiff, at + 8)
            yield tag, kind, number, value
    except struct.error:
        return


def _check_tiff(data: bytes) -> None:
    """Refuses a TIFF whose first image is a preview, or whose tags share their bytes: Pillow copies each tag's."""
    if any(tag == 50706 or (tag == 254 and value & 1) for tag, _, _, value in _ifd(data)):
        raise InputError(
            "is a camera's raw file (DNG, NEF, ARW), of which only a preview would be seen; convert it to JPEG"
        )
    sizes = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
    if sum(sizes.get(kind, 0) * count for _, kind, count, _ in _ifd(data)) > 4 * len(data):
        raise InputError("has tags of more bytes than the file; save it anew")


def _finish(image: Image.Image, orientation: int, done: list[str], max_side: int | None) -> DecodedImage:
    """Converts to RGB, after reducing: that costs the least memory."""
    if image.mode == "I" and image.format == "PPM":  # scaled by Pillow to 16 bits
        if "sixteen_bits" not in done:
            done.append("sixteen_bits")
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise InputError(f"has pixels of mode {image.mode}, 32 bits without a known range; convert it to 8-bit RGB")
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    image.load()
    if image.mode == "CMYK":
        done.append("cmyk")
    elif image.mode == "LAB":
        done.append("lab")
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
        assert converted is not None  # only in place there is nothing to return
        image = converted
    transparent = image.has_transparency_data
    if max_side is not None and max(image.size) > max_side:
        # A palette's indices cannot be averaged.
        image = image.convert("RGBA" if transparent else "RGB")
        image.thumbnail((max_side, max_side), Image.Resampling.BICUBIC)
        if "reduced" not in done:
            done.append("reduced")
    if transparent:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            done.append("transparency")
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
    image = image.convert("RGB")
    if orientation in _TURNS:
        done.append("orientation")
        image = image.transpose(_TURNS[orientation])
    return DecodedImage(image, tuple(done))
