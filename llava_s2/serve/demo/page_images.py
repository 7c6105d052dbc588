"""The images on the page: uploads, examples and addresses, kept once whole and once small."""

import threading
import uuid
from pathlib import Path

from PIL import Image

from llava_s2.errors import InputError
from llava_s2.serve.decoder_processes import DecoderProcesses
from llava_s2.serve.demo.session import PageImage, Session

MOST_IMAGES = 8
ORIGINALS = "originals"
"""In the page's folder, where the images lie with all their pixels."""
_THUMBNAIL_SIDE = 640
_one_at_a_time = threading.Lock()
_decoders = DecoderProcesses()


def add_image(
    session: Session, image: Image.Image, folder: Path, upload: str = "", *, is_example: bool = False
) -> None:
    """Puts an image (RGB) on the page; ``folder`` takes its copies. Raises InputError beyond ``MOST_IMAGES``."""
    if not session.turns:
        session.images = [one for one in session.images if not one.is_example]
    if len(session.images) >= MOST_IMAGES:
        raise InputError(f"there are {MOST_IMAGES} images on the page; remove one first")
    small = image.copy()
    small.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
    path = folder / f"{uuid.uuid4().hex}.jpg"
    small.save(path, quality=88)
    full = folder / ORIGINALS / path.name
    full.parent.mkdir(exist_ok=True)
    image.save(full, quality=95)
    session.images.append(PageImage(image, str(path), upload, str(full), is_example))


def read_upload(path: str) -> Image.Image:
    """Decodes an uploaded file. Raises InputError for anything that is not an image."""
    return _decoders.decode(Path(path).read_bytes(), Path(path).name).image


def read_address(url: str) -> Image.Image:
    """Fetches and decodes an image from the public internet. Raises InputError."""
    from llava_s2.serve.urls import fetch

    try:
        return _decoders.decode(fetch(url.strip()), "the image").image
    except InputError as error:
        raise error if str(error).startswith("the image") else InputError(f"the address {error}") from None


def sync(session: Session, shown: list[str], folder: Path) -> list[InputError]:
    """Brings the session in line with the files that the page's gallery shows: small copies of known images, in any
    place on disk, and uploads. Returns what was wrong with uploads; those are left out.

    An upload that was brought in before is known by its path: a question may be sent before the page shows its copy.
    """
    known = {name for one in session.images for name in (Path(one.thumbnail).name, one.upload)}
    read: dict[str, Image.Image] = {}
    errors = []
    for path in shown:  # before the lock: a visitor's large image holds up no other visitor
        if path not in known and Path(path).name not in known:
            try:
                read[path] = read_upload(path)
            except InputError as error:
                errors.append(error)
    with _one_at_a_time:
        names, paths = {Path(path).name for path in shown}, set(shown)
        session.images = [one for one in session.images if Path(one.thumbnail).name in names or one.upload in paths]
        for path, image in read.items():
            if all(one.upload != path for one in session.images):  # the same event may come twice
                try:
                    add_image(session, image, folder, path)
                except InputError as error:
                    errors.append(error)
        return errors
