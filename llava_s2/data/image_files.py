"""Where the image names of a data file lead: a folder, tar files, or a folder with tar files in it."""

import os
import unicodedata
from collections.abc import Iterator
from glob import glob
from pathlib import Path, PureWindowsPath
from urllib.parse import unquote, urlsplit

from PIL import Image

from llava_s2.data.image_decoding import Embedded, open_image
from llava_s2.data.tar_members import TarMembers
from llava_s2.data.validation_error import ValidationError
from llava_s2.errors import InputError


class ImageFiles:
    """Images by name.

    Args:
        source: a folder, the path of a tar file, or a pattern of such paths (``shards/*.tar``); None for names that are
            paths themselves. In a folder, a name that is no file is looked for in the folder's tar files.

    Raises:
        InputError: there is no such folder or file, or a tar file cannot be read.
    """

    def __init__(self, source: str | Path | None) -> None:
        self.folder: Path | None = None
        self.tars: list[Path] = []
        if source is not None:
            path = Path(source)
            if path.is_dir():
                self.folder = path
                self.tars = sorted(path.glob("*.tar"))
            else:
                self.tars = [path] if path.is_file() else sorted(map(Path, glob(str(source))))  # noqa: PTH207
                if not self.tars:
                    raise InputError(f"{source}: no such image folder or tar file")
        self._tars = TarMembers(self.tars) if self.tars else None
        self._in_files = source is None or self.folder is not None

    def folder_path(self) -> Path:
        """Where names begin that are no tar file's."""
        return Path(self.folder or "").resolve()

    def find(self, name: str) -> str | Embedded:
        """What an image's name stands for: a path, or a tar file's bytes.

        A name that is not there is tried in its other forms too: backslashes, as Windows writes them, ``file://``,
        percent-encoding, and the other Unicode normal form, as macOS writes accents.

        Raises:
            ValidationError: nothing of that name is there.
        """
        if (found := self._find(name)) is not None:
            return found
        for form in _other_forms(name):
            if (found := self._find(form)) is not None:
                return found
        raise ValidationError("missing_image", self._missing(name))

    def _find(self, name: str) -> str | Embedded | None:
        if self._in_files:
            # os.path in a third of pathlib's time, and there are a million names
            path = name if self.folder is None else os.path.join(self.folder, name)  # noqa: PTH118
            if os.path.exists(path):  # noqa: PTH110
                return path
        return self._tars.find(name) if self._tars is not None else None

    def open(self, image: str | Embedded) -> Image.Image:
        """Opens an image by name, or one that the data file holds.

        Raises:
            ValidationError: it is not there, or it cannot be opened.
        """
        found = self.find(image) if isinstance(image, str) else image
        try:
            return found.open() if isinstance(found, Embedded) else open_image(found)
        except ValidationError:
            raise
        except InputError as error:
            raise ValidationError("corrupt_image", str(error)) from None

    def read(self, image: str | Embedded) -> bytes:
        """An image's file as it is; errors as of `open`."""
        found = self.find(image) if isinstance(image, str) else image
        try:
            return found.read() if isinstance(found, Embedded) else Path(found).read_bytes()
        except OSError as error:
            raise ValidationError("corrupt_image", f"{found}: cannot be read ({error.strerror})") from None

    def _missing(self, name: str) -> str:
        if not self._in_files:
            assert self._tars is not None
            return f"{name}: no such image in {self._tars.paths[0]}" + (" …" if len(self._tars.paths) > 1 else "")
        path = Path(name) if self.folder is None else self.folder / name
        return f"{path}: no such image file{self._hint(path, name)}"

    def _hint(self, path: Path, name: str) -> str:
        """The slip that explains a missing file, where there is one."""
        if name.startswith(("http://", "https://")):
            return "; that is an address, and training reads files: fetch it first"
        if PureWindowsPath(name).drive:
            return "; that is a path of a Windows machine, give names relative to the image folder"
        if self.folder is not None and Path(name).exists():
            return f"; {name} is there, so names hold the folder already: leave the image folder out"
        if path.parent.is_dir():
            like = [file.name for file in path.parent.iterdir() if file.stem.lower() == path.stem.lower()]
            if like:
                return f"; {', '.join(sorted(like)[:3])} is there, and upper case and ending count"
        return ""


def _other_forms(name: str) -> Iterator[str]:
    forms = [name.replace("\\", "/")]
    if name.startswith("file:"):
        forms = [unquote(urlsplit(name).path)]
    elif "%" in name:
        forms.append(unquote(name))
    for form in forms:
        for normal in ("NFC", "NFD"):
            yield from (form, unicodedata.normalize(normal, form))
