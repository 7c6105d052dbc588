"""`open_image` on every awkward kind of picture."""

import io
import struct
import tracemalloc
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from llava_s2.data.image_decoding import decode_image, open_image
from llava_s2.errors import InputError

RAMP = np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5


def saved(tmp_path, image, name, **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


def test_plain_rgb_is_unchanged(tmp_path):
    image = open_image(saved(tmp_path, Image.fromarray(RAMP), "a.png"))
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), RAMP)


def test_an_open_file_works_like_a_path(tmp_path):
    data = io.BytesIO()
    Image.fromarray(RAMP).save(data, "PNG")
    data.seek(0)
    assert np.array_equal(np.asarray(open_image(data)), RAMP)
    with pytest.raises(InputError, match="not an image"):
        open_image(io.BytesIO(b"hello"))


def test_transparent_parts_are_shown_on_white_and_hidden_colours_never(tmp_path):
    red = Image.new("RGB", (8, 8), (255, 0, 0))
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    half = Image.new("RGBA", (8, 8), (255, 0, 0, 128))
    keyed = saved(tmp_path, red, "keyed.png", transparency=(255, 0, 0))
    grey = saved(tmp_path, Image.new("LA", (8, 8), (7, 0)), "grey.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path, wanted in (
            (saved(tmp_path, clear, "alpha.png"), [255, 255, 255]),
            (saved(tmp_path, clear, "alpha.webp", lossless=True, exact=True), [255, 255, 255]),
            (saved(tmp_path, red.convert("P"), "palette.png", transparency=bytes([0] * 256)), [255, 255, 255]),
            (keyed, [255, 255, 255]),
            (grey, [255, 255, 255]),
            (saved(tmp_path, half, "half.png"), [255, 127, 127]),
            (saved(tmp_path, red.convert("P"), "palette.gif"), [255, 0, 0]),
            (saved(tmp_path, red.convert("RGBA"), "opaque.png"), [255, 0, 0]),
        ):
            decoded = decode_image(path)
            assert decoded.image.mode == "RGB", path
            assert np.asarray(decoded.image).reshape(-1, 3).tolist() == [wanted] * 64, path
            assert decoded.conversions == (() if wanted == [255, 0, 0] else ("transparency",)), path


@pytest.mark.parametrize("name", ["grey.png", "grey.tif"])
def test_sixteen_bit_grey_keeps_its_upper_bits(tmp_path, name):
    path = saved(tmp_path, Image.fromarray(np.array([[0, 256], [32768, 65535]], np.uint16)), name)
    decoded = decode_image(path)
    assert np.asarray(decoded.image)[..., 1].tolist() == [[0, 1], [128, 255]]
    assert decoded.conversions == ("sixteen_bits",)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_sixteen_bit_rgb_is_told(tmp_path):
    pixels = np.array([[[0, 32896, 65535], [65535, 0, 257]]], ">u2")
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    body = zlib.compress(b"\0" + pixels.tobytes())
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    decoded = decode_image(data)
    assert np.asarray(decoded.image).tolist() == [[[0, 128, 255], [255, 0, 1]]]
    assert decoded.conversions == ("sixteen_bits",)


@pytest.mark.parametrize("most", [1023, 65535])
def test_a_grey_map_has_the_range_that_it_says(most):
    values = np.array([[0, most // 4], [most // 2, most]], ">u2")
    decoded = decode_image(b"P5 2 2 %d\n" % most + values.tobytes())
    assert np.abs(np.asarray(decoded.image)[..., 0] - values * (255 / most)).max() <= 1
    assert decoded.conversions == ("sixteen_bits",)


def test_colours_of_a_jpeg_are_what_its_marks_say_together(tmp_path):
    data = saved(tmp_path, Image.new("RGB", (16, 16), (200, 40, 90)), "plain.jpg").read_bytes()
    end = 4 + int.from_bytes(data[4:6], "big")
    adobe = (
        b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"  # no YCbCr; where JFIF stands too, decoders follow that
    )
    for marks in (data[:end], data[:end] + adobe, data[:2] + adobe, data[:2]):
        with Image.open(io.BytesIO(marks + data[end:])) as image:
            assert open_image(marks + data[end:]).tobytes() == image.convert("RGB").tobytes()


@pytest.mark.parametrize("tags", [{254: 1}, {50706: b"\1\4\0\0"}], ids=["preview", "DNG"])
def test_of_a_cameras_raw_file_the_preview_is_not_taken_for_the_image(tmp_path, tags):
    path = saved(tmp_path, Image.new("RGB", (16, 16)), "raw.tif", tiffinfo=tags)
    with pytest.raises(InputError, match="camera's raw file"):
        open_image(path)


@pytest.mark.parametrize("name", ["inks.jpg", "inks.tif"])
def test_inks_become_rgb(tmp_path, name):
    decoded = decode_image(saved(tmp_path, Image.new("CMYK", (8, 8), (0, 255, 255, 0)), name))
    assert np.abs(np.asarray(decoded.image).astype(int) - [255, 0, 0]).max() <= 4
    assert decoded.conversions == ("cmyk",)


def test_lab_and_ycbcr_tiffs(tmp_path):
    lab = decode_image(saved(tmp_path, Image.new("LAB", (8, 8), (255, 128, 128)), "white.tif"))
    assert lab.conversions == ("lab",) and min(lab.image.getpixel((0, 0))) >= 253
    for compression in ("jpeg", None):
        image = Image.new("YCbCr", (16, 16), (81, 90, 240))  # red
        path = saved(tmp_path, image, "scan.tif", compression=compression)
        red, green, blue = open_image(path).getpixel((3, 3))
        assert red > 230 and green < 30 and blue < 30


def test_heic(tmp_path):
    pytest.importorskip("pillow_heif").from_pillow(Image.new("RGB", (64, 48), (0, 0, 255))).save(tmp_path / "a.heic")
    decoded = decode_image(tmp_path / "a.heic")
    assert decoded.image.size == (64, 48) and decoded.image.getpixel((9, 9))[2] > 240
    assert decoded.conversions == ("heif",)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_exif_orientation_is_honoured(tmp_path, mode):
    values = np.array([[10, 200, 60]], np.uint8)
    image = Image.fromarray(values).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the picture is the right side of the stored one
    for name in ("turned.png", "turned.webp", "turned.tif"):
        path = saved(tmp_path, image, name, exif=exif, lossless=True)
        assert np.array_equal(np.asarray(open_image(path))[..., 0], np.rot90(values, -1)), name
    as_stored = decode_image(tmp_path / "turned.png", apply_orientation=False)
    assert np.array_equal(np.asarray(as_stored.image)[..., 0], values) and as_stored.conversions == ()
    assert decode_image(tmp_path / "turned.png").conversions == ("orientation",)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_of_a_jpeg_are_pillows(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x010F], exif[0x0112], exif[0x8769] = "a camera", orientation, {0x9286: b"a comment"}
    path = saved(
        tmp_path, Image.fromarray(np.arange(32 * 48 * 3, dtype=np.uint8).reshape(32, 48, 3)), "a.jpg", exif=exif
    )
    assert np.array_equal(np.asarray(open_image(path)), np.asarray(ImageOps.exif_transpose(Image.open(path))))


def test_a_photo_with_a_preview_inside_is_no_animation(tmp_path):
    photo, preview = Image.new("RGB", (16, 16), (0, 255, 0)), Image.new("RGB", (8, 8))
    path = tmp_path / "phone.jpg"
    photo.save(path, format="MPO", save_all=True, append_images=[preview])
    assert open_image(path).size == (16, 16)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_of_an_animation_the_first_frame(tmp_path, suffix):
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (0, 120, 250)]
    path = saved(tmp_path, frames[0], f"moving.{suffix}", save_all=True, append_images=frames[1:])
    decoded = decode_image(path)
    assert max(decoded.image.getpixel((0, 0))) <= 1 and decoded.conversions == ("first_frame",)


def noise(tmp_path, name):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    return saved(tmp_path, Image.fromarray(pixels), name)


@pytest.mark.parametrize("name", ["cut.png", "cut.jpg", "cut.webp", "cut.bmp", "cut.tif"])
@pytest.mark.parametrize("share", [0.6, 0.02])
def test_truncated_is_an_error(tmp_path, name, share):
    path = noise(tmp_path, name)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match=rf"{name}: (truncated or damaged|not an image)") as caught:
        open_image(path)
    assert "\n" not in str(caught.value)


def test_missing_folder_text_and_empty_are_errors(tmp_path):
    (tmp_path / "text.jpg").write_text("<html>404 not found</html>")
    (tmp_path / "empty.png").write_bytes(b"")
    for name, message in (
        ("none.jpg", "no such image file"),
        ("text.jpg", "not an image"),
        ("empty.png", "not an image"),
        ("", "cannot be read"),
    ):
        with pytest.raises(InputError, match=message):
            open_image(tmp_path / name)


def test_pixels_without_a_known_range_are_an_error(tmp_path):
    with pytest.raises(InputError, match=r"float\.tif: has pixels of mode F.*; convert"):
        open_image(saved(tmp_path, Image.fromarray(np.ones((2, 2), np.float32)), "float.tif"))
    with pytest.raises(InputError, match=r"int\.tif: has pixels of mode I.*; convert"):
        open_image(saved(tmp_path, Image.fromarray(np.full((2, 2), -5, np.int32)), "int.tif"))


def exif_bomb(tags, size):
    """Tags that share the same bytes: Pillow makes a copy for each."""
    entries = struct.pack("<HHII", 0x0112, 3, 1, 6) + b"".join(
        struct.pack("<HHII", 0x8000 + tag, 7, size, 8) for tag in range(tags)
    )
    return b"II*\0" + struct.pack("<IH", 8, tags + 1) + entries + bytes(size)


def test_of_exif_only_the_orientation_is_read(tmp_path):
    image = Image.new("RGB", (8, 4))
    small = b"Exif\0\0" + exif_bomb(2000, 30_000)
    large = b"Exif\0\0" + exif_bomb(3000, 1 << 20)
    paths = [
        saved(tmp_path, image, "small.jpg", exif=small),
        saved(tmp_path, image, "large.png", exif=large),
        saved(tmp_path, image, "large.webp", exif=large),
    ]
    open_image(paths[0])
    tracemalloc.start()
    try:
        for path in paths:
            assert open_image(path).size == (4, 8), path
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()
    with pytest.raises(InputError, match="tags of more bytes than the file"):
        open_image(exif_bomb(2000, 30_000))


def progressive(scans):
    file = io.BytesIO()
    Image.new("L", (16, 16)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    refine = b"\xff\xda\0\x08\x01\x01\0\x01\x3f\x10" + bytes(4)
    return data[:-2] + refine * scans + b"\xff\xd9"


def test_a_jpeg_of_thousands_of_scans_is_refused_without_decoding_it():
    with pytest.raises(InputError, match=r"is a JPEG of 3\d\d\d scans"):
        open_image(progressive(3000))
    with pytest.raises(InputError, match="too many parts"):
        open_image(b"\xff\xd8" + b"\xff\xe1\0\2" * 20_000)
    with pytest.raises(InputError, match="truncated"):
        open_image(b"\xff\xd8" + b"\xff" * (4 << 20))


@pytest.mark.parametrize("name", ["wide.jpg", "wide.png"])
def test_a_large_image_is_reduced_to_the_side_asked_for(tmp_path, name):
    ramp = np.broadcast_to(np.linspace(0, 255, 10_000).astype(np.uint8), (2500, 10_000))
    path = saved(tmp_path, Image.fromarray(ramp), name)
    decoded = decode_image(path, max_side=2000)
    assert decoded.image.size == (2000, 500) and decoded.conversions == ("reduced",)
    assert np.abs(np.asarray(decoded.image)[250, :, 0] - np.linspace(0, 255, 2000)).max() < 3
    assert decode_image(path).image.size == (10_000, 2500)


def test_pixels_beyond_the_bound_are_refused_before_decoding():
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    data = bytearray(file.getvalue())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", 60_000, 60_000)
    with pytest.raises(InputError, match="has 60000 x 60000 pixels"):
        open_image(bytes(data))


def test_what_editors_write_beside_the_pixels_is_no_matter(tmp_path):
    plist = b"Photoshop 3.0\0" + b"8BIM" + b"\x04\x24\0\0" + b'<?xml version="1.0"?><!DOCTYPE plist><plist></plist>'
    data = io.BytesIO()
    Image.fromarray(RAMP).save(data, "JPEG", quality=95)
    jpeg = data.getvalue()
    marked = jpeg[:2] + b"\xff\xed" + struct.pack(">H", len(plist) + 2) + plist + jpeg[2:]
    assert np.array_equal(np.asarray(open_image(marked)), np.asarray(Image.open(io.BytesIO(jpeg))))
    info = PngInfo()
    info.add_text("mxfile", "<svg xmlns='http://www.w3.org/2000/svg'/>")
    path = saved(tmp_path, Image.fromarray(RAMP), "drawing.png", pnginfo=info)
    assert np.array_equal(np.asarray(open_image(path)), RAMP)
