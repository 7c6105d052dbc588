"""Where the image names of a data file lead: a folder, tar files, or a folder with tar files in it."""

import os
from glob import glob
from pathlib import Path, PureWindowsPath

from PIL import Image

from llava_s2.data.faults import RecordFault
from llava_s2.data.image_decoding import Embedded, open_image
from llava_s2.data.tars import TarMembers
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
        tars: list[Path] = []
        if source is not None:
            path = Path(source)
            if path.is_dir():
                self.folder = path
                tars = sorted(path.glob("*.tar"))
            else:
                tars = [path] if path.is_file() else sorted(map(Path, glob(str(source))))  # noqa: PTH207
                if not tars:
                    raise InputError(f"{source}: no such image folder or tar file")
        self._tars = TarMembers(tars) if tars else None
        self._in_files = source is None or self.folder is not None

    def find(self, name: str) -> str | Embedded:
        """What an image's name stands for: a path, or a tar file's bytes. Backslashes, as Windows writes them, are
        taken for slashes too.

        Raises:
            RecordFault: nothing of that name is there.
        """
        for form in (name, name.replace("\\", "/")) if "\\" in name else (name,):
            if self._in_files:
                # os.path in a third of pathlib's time, and there are a million names
                path = form if self.folder is None else os.path.join(self.folder, form)  # noqa: PTH118
                if os.path.exists(path):  # noqa: PTH110
                    return path
            found = self._tars.find(form) if self._tars is not None else None
            if found is not None:
                return found
        raise RecordFault("missing_image", self._missing(name))

    def open(self, image: str | Embedded) -> Image.Image:
        """Opens an image by name, or one that the data file holds.

        Raises:
            RecordFault: it is not there, or it cannot be opened.
        """
        found = self.find(image) if isinstance(image, str) else image
        try:
            return found.open() if isinstance(found, Embedded) else open_image(found)
        except RecordFault:
            raise
        except InputError as error:
            raise RecordFault("corrupt_image", str(error)) from None

    def _missing(self, name: str) -> str:
        if not self._in_files:
            assert self._tars is not None
            return f"{name}: no such image in {self._tars.paths[0]}" + (" …" if len(self._tars.paths) > 1 else "")
        path = Path(name) if self.folder is None else self.folder / name
        return f"{path}: no such image file{self._hint(path, name)}"

    def _hint(self, path: Path, name: str) -> str:
        """The slip that explains a missing file, where there is one."""
        if PureWindowsPath(name).drive:
            return "; that is a path of a Windows machine, give names relative to the image folder"
        if self.folder is not None and Path(name).exists():
            return f"; {name} is there, so names hold the folder already: leave the image folder out"
        if path.parent.is_dir():
            like = [file.name for file in path.parent.iterdir() if file.stem.lower() == path.stem.lower()]
            if like:
                return f"; {', '.join(sorted(like)[:3])} is there, and upper case and ending count"
        return ""
