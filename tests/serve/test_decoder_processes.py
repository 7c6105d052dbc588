"""Decoding what strangers send, in processes that can be ended."""

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hostile import COSTLY, HOSTILE, encoded, noise
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from llava_s2.errors import InputError
from llava_s2.serve.decoder_processes import MAX_SIDE, DecoderProcesses


@pytest.fixture(scope="module")
def read_picture():
    decoders = DecoderProcesses()
    yield lambda data, name="image": decoders.decode(data, name).image
    decoders.close()


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_files_are_refused_in_a_line(read_picture, what):
    make, message = HOSTILE[what]
    with pytest.raises(InputError, match=message) as caught:
        read_picture(make(), "upload.png")
    assert str(caught.value).startswith("upload.png: ")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP"])
def test_a_picture_comes_back_pixel_by_pixel(read_picture, kind):
    image = noise().quantize(16).convert("RGB")
    options = {"lossless": True} if kind == "WEBP" else {}
    stored = image.quantize(16) if kind == "GIF" else image
    assert np.array_equal(np.asarray(read_picture(encoded(stored, kind, **options))), np.asarray(image))


def test_a_jpeg_keeps_what_a_phone_appends(read_picture):
    data = encoded(kind="JPEG")
    film = b"\0\0\0\x18ftypmp42" + bytes(range(256)) * 10
    assert read_picture(data + film).tobytes() == Image.open(io.BytesIO(data)).tobytes()
    preview = encoded(noise(), "MPO", save_all=True, append_images=[noise(8)])
    assert read_picture(preview).size == (64, 64)


def test_a_name_is_its_last_part_on_one_line(read_picture):
    for name in ("../../etc/pass\nwd", "C:\\a\\pass\nwd", "/pass\nwd"):
        with pytest.raises(InputError, match=r"^pass\?wd: "):
            read_picture(b"", name)
    with pytest.raises(InputError, match=r"^x{80}: "):
        read_picture(b"", "x" * 5000)
    with pytest.raises(InputError, match=r"^image: "):
        read_picture(b"", "../")


def test_the_largest_side_is_reduced_to(read_picture):
    assert read_picture(encoded(Image.new("L", (MAX_SIDE, 2)))).size == (MAX_SIDE, 2)
    assert read_picture(encoded(Image.new("L", (2 * MAX_SIDE, 4)))).size == (MAX_SIDE, 2)


@settings(deadline=None, max_examples=100)
@given(
    st.sampled_from(["PNG", "JPEG", "GIF", "WEBP"]),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6),
    st.floats(0.02, 1),
)
def test_damage_gives_a_picture_or_an_input_error(read_picture, kind, changes, kept):
    data = bytearray(encoded(noise(24), kind))
    for share, value in changes:
        data[int(share * (len(data) - 1))] = value
    try:
        image = read_picture(bytes(data[: int(len(data) * kept)]))
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert image.mode == "RGB" and max(image.size) <= MAX_SIDE


@pytest.mark.parametrize("what", COSTLY)
def test_what_costs_more_than_its_size_gives_a_picture_or_an_input_error(read_picture, what):
    try:
        image = read_picture(COSTLY[what](600))
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert image.mode == "RGB" and max(image.size) <= MAX_SIDE


def test_a_slow_image_holds_up_no_other(read_picture):
    slow = COSTLY["PNG of zeros"](4000)
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(read_picture, slow) for _ in range(3)]
        for _ in range(3):
            assert read_picture(encoded()).size == (64, 64)
        assert not all(one.done() for one in waiting)
        assert all(one.result().size == (4000, 4000) for one in waiting)
