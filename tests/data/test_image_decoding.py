"""`open_image` on every awkward kind of picture."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from llava_s2.data.image_decoding import open_image
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


def test_palette_and_alpha_become_rgb(tmp_path):
    red = Image.new("RGB", (8, 8), (255, 0, 0))
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    palette = red.convert("P")
    palette.info["transparency"] = bytes([0] * 256)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path in (
            saved(tmp_path, clear, "alpha.png"),
            saved(tmp_path, palette, "palette.png", transparency=bytes([0] * 256)),
            saved(tmp_path, red.convert("P"), "palette.gif"),
        ):
            image = open_image(path)
            assert image.mode == "RGB", path
            assert np.asarray(image).reshape(-1, 3).tolist() == [[255, 0, 0]] * 64, path


@pytest.mark.parametrize("name", ["grey.png", "grey.tif"])
def test_sixteen_bit_grey_is_an_error(tmp_path, name):
    path = saved(tmp_path, Image.fromarray(np.array([[0, 256], [32768, 65535]], np.uint16)), name)
    with pytest.raises(InputError, match=rf"{name}: has 16 bits a channel; convert it to 8-bit RGB"):
        open_image(path)


def test_sixteen_bit_rgb_is_an_error_though_pillow_would_cut_it(tmp_path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixels = np.array([[[0, 32896, 65535], [65535, 0, 257]]], ">u2")
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    body = zlib.compress(b"\0" + pixels.tobytes())
    path = tmp_path / "rgb16.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b""))
    assert Image.open(path).mode == "RGB"
    with pytest.raises(InputError, match=r"rgb16\.png: has 16 bits a channel"):
        open_image(path)


@pytest.mark.parametrize("name", ["inks.jpg", "inks.tif"])
def test_cmyk_is_an_error(tmp_path, name):
    with pytest.raises(InputError, match=rf"{name}: has CMYK colours.*; convert it to 8-bit RGB"):
        open_image(saved(tmp_path, Image.new("CMYK", (8, 8), (0, 255, 255, 0)), name))


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_exif_orientation_is_honoured(tmp_path, mode):
    values = np.array([[10, 200, 60]], np.uint8)
    image = Image.fromarray(values).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the picture is the right side of the stored one
    path = saved(tmp_path, image, "turned.png", exif=exif)
    assert np.array_equal(np.asarray(open_image(path))[..., 0], np.rot90(values, -1))


def test_a_photo_with_a_preview_inside_is_no_animation(tmp_path):
    photo, preview = Image.new("RGB", (16, 16), (0, 255, 0)), Image.new("RGB", (8, 8))
    path = tmp_path / "phone.jpg"
    photo.save(path, format="MPO", save_all=True, append_images=[preview])
    assert open_image(path).size == (16, 16)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_animated_is_an_error(tmp_path, suffix):
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (0, 120, 250)]
    path = saved(tmp_path, frames[0], f"moving.{suffix}", save_all=True, append_images=frames[1:])
    with pytest.raises(InputError, match=r"moving\.\w+: has 3 frames"):
        open_image(path)


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
