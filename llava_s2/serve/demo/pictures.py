"""The pictures on the page: uploads, examples and addresses, kept once whole and once small."""

import threading
import uuid
from pathlib import Path

from PIL import Image

from llava_s2.errors import InputError
from llava_s2.serve.decoder_processes import DecoderProcesses
from llava_s2.serve.demo.session import Picture, Session

MOST_PICTURES = 8
ORIGINALS = "originals"
"""In the page's folder, where the pictures lie with all their pixels."""
_THUMBNAIL_SIDE = 640
_one_at_a_time = threading.Lock()
_decoders = DecoderProcesses()


def add_picture(
    session: Session, image: Image.Image, folder: Path, upload: str = "", *, is_example: bool = False
) -> None:
    """Puts a picture (RGB) on the page; ``folder`` takes its copies. Raises InputError beyond ``MOST_PICTURES``."""
    if not session.turns:
        session.pictures = [picture for picture in session.pictures if not picture.is_example]
    if len(session.pictures) >= MOST_PICTURES:
        raise InputError(f"there are {MOST_PICTURES} pictures on the page; remove one first")
    small = image.copy()
    small.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
    path = folder / f"{uuid.uuid4().hex}.jpg"
    small.save(path, quality=88)
    full = folder / ORIGINALS / path.name
    full.parent.mkdir(exist_ok=True)
    image.save(full, quality=95)
    session.pictures.append(Picture(image, str(path), upload, str(full), is_example))


def read_upload(path: str) -> Image.Image:
    """Decodes an uploaded file. Raises InputError for anything that is not a picture."""
    return _decoders.decode(Path(path).read_bytes(), Path(path).name).image


def read_address(url: str) -> Image.Image:
    """Fetches and decodes a picture from the public internet. Raises InputError."""
    from llava_s2.serve.urls import fetch

    try:
        return _decoders.decode(fetch(url.strip()), "the picture").image
    except InputError as error:
        raise error if str(error).startswith("the picture") else InputError(f"the address {error}") from None


def sync(session: Session, shown: list[str], folder: Path) -> list[InputError]:
    """Brings the session in line with the files that the page's gallery shows: small copies of known pictures, in any
    place on disk, and uploads. Returns what was wrong with uploads; those are left out.

    An upload that was brought in before is known by its path: a question may be sent before the page shows its copy.
    """
    known = {name for picture in session.pictures for name in (Path(picture.thumbnail).name, picture.upload)}
    read: dict[str, Image.Image] = {}
    errors = []
    for path in shown:  # before the lock: a visitor's large picture holds up no other visitor
        if path not in known and Path(path).name not in known:
            try:
                read[path] = read_upload(path)
            except InputError as error:
                errors.append(error)
    with _one_at_a_time:
        names, paths = {Path(path).name for path in shown}, set(shown)
        session.pictures = [
            picture for picture in session.pictures if Path(picture.thumbnail).name in names or picture.upload in paths
        ]
        for path, image in read.items():
            if all(picture.upload != path for picture in session.pictures):  # the same event may come twice
                try:
                    add_picture(session, image, folder, path)
                except InputError as error:
                    errors.append(error)
        return errors
