"""Opening a picture the way training, evaluation and serving all need it: upright, 8-bit RGB, or a clear error."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from llava_s2.errors import InputError

# A phone's JPEG with a second picture inside (a preview, a gain map) is one photo, not an animation.
_SEVERAL_FRAMES_ONE_PICTURE = {"MPO"}
_HEIF = {b"ftyp" + brand for brand in (b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"avif")}
# Pillow's name of what a decoder reads, such as RGB;16B in a PNG, which it would cut to 8 bits by itself.
_SIXTEEN_BITS = re.compile(r";16[BLN]")


@dataclass(frozen=True)
class Embedded:
    """An image inside a data file, read only when it is its turn.

    Attributes:
        name: says where, in errors; no other image of the data has it.
        read: gives the image file's bytes.
    """

    name: str
    read: Callable[[], bytes] = field(compare=False, repr=False)

    def open(self) -> Image.Image:
        """Reads it as `open_image` does. Raises InputError, with the image's name."""
        source = BytesIO(self.read())
        source.name = self.name  # as open files have it
        return open_image(source)


def open_image(source: str | Path | BinaryIO, formats: list[str] | tuple[str, ...] | None = None) -> Image.Image:
    """Reads one still picture.

    Args:
        source: a file's path, or an open binary file (an upload, bytes in a ``BytesIO``).
        formats: Pillow's names of the formats to try; all that it knows unless given.

    Returns:
        The picture in mode ``RGB``, turned as its EXIF orientation says. A palette's colours are looked up; alpha is
        dropped (the colour stored under a transparent pixel stays), as ``convert("RGB")`` does and LLaVA with it.

    Raises:
        InputError: no such file, not an image, truncated or damaged, animated, of more than 8 bits a channel, or CMYK.
    """
    name = str(getattr(source, "name", "image")) if hasattr(source, "read") else str(source)
    try:
        with Image.open(source, formats=formats) as image:
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format not in _SEVERAL_FRAMES_ONE_PICTURE:
                raise InputError(f"{name}: has {frames} frames; save the frame that is meant as a still picture")
            _check_mode(image)
            # By way of RGBA: the same colours as straight to RGB, without Pillow's warning a picture.
            masked = image.mode == "P" and "transparency" in image.info
            return ImageOps.exif_transpose(image.convert("RGBA") if masked else image).convert("RGB")
    except InputError as error:
        raise error if str(error).startswith(name) else InputError(f"{name}: {error}") from None
    except FileNotFoundError:
        raise InputError(f"{name}: no such image file") from None
    except (IsADirectoryError, PermissionError) as error:
        raise InputError(f"{name}: cannot be read ({error.strerror})") from None
    except UnidentifiedImageError:
        raise InputError(f"{name}: {_not_an_image(source)}") from None
    except Image.DecompressionBombError as error:
        raise InputError(f"{name}: too many pixels to open safely ({error}); shrink it") from None
    except Exception as error:  # Pillow's decoders raise anything from OSError to struct.error on damaged data
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{name}: truncated or damaged image ({reason}); fetch it again or drop its record") from None


def _not_an_image(source: str | Path | BinaryIO) -> str:
    """Says what a file is that Pillow does not know, where it is something that people do give."""
    if isinstance(source, str | Path):
        with Path(source).open("rb") as file:
            start = file.read(16)
    else:
        source.seek(0)
        start = source.read(16)
    if not start:
        return "is an empty file, not an image; fetch it again or drop its record"
    if start[4:12] in _HEIF:
        return "is a HEIC or AVIF picture (an iPhone's default), which Pillow does not know; convert it to JPEG"
    return "not an image in a format that Pillow knows; replace it or drop its record"


def _check_mode(image: ImageFile.ImageFile) -> None:
    """Refuses pixels whose way to 8-bit RGB is anyone's guess: which range, which inks."""
    way_out = "; convert it to 8-bit RGB"
    if image.mode == "CMYK":  # a YCCK JPEG too
        raise InputError(f"has CMYK colours, which are printing inks{way_out}")
    if image.mode.startswith("I;16") or _SIXTEEN_BITS.search(str(image.tile)):
        raise InputError(f"has 16 bits a channel{way_out}")
    if image.mode in ("I", "F"):
        raise InputError(f"has pixels of mode {image.mode}, 32 bits without a known range{way_out}")
