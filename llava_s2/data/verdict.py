"""What a check of one data file found, kept in the cache folder, so that the next start need not read its records."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from glob import glob
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from llava_s2.data.cache import WORTH_KEEPING, checksum, place_of, remember, remember_array, state
from llava_s2.data.image_files import ImageFiles
from llava_s2.data.validation_error import ValidationError
from llava_s2.model.templates import TEMPLATES, takes_system

_MOST_FOLDERS = 10_000  # of images, whose times are compared


@dataclass
class Verdict:
    """What is known of a data file's records.

    Attributes:
        columns: int64 (5, N), one of each record: words (below zero for text alone), images before the first answer,
            bytes before it, images, bytes.
        faults: index of a record that cannot be trained on -> why.
        notices: what does not stop a run, for people to know.
        images_opened: whether every image was opened and is good.
    """

    columns: np.ndarray
    faults: dict[int, ValidationError]
    notices: list[str]
    images_opened: bool = False


class VerdictFile:
    """The place of a verdict. It is another one where the data's or the tar files' content, what is asked of records or
    the program that checks them has changed.

    Args:
        path: the data file, or the folder or pattern of several.
        files: where its images are.
        chat_template: Jinja text.
    """

    def __init__(self, path: str | Path, files: ImageFiles, chat_template: str) -> None:
        self._files = files
        template = (
            chat_template == TEMPLATES["plain"],
            chat_template in TEMPLATES.values(),
            takes_system(chat_template),
        )
        data = [(file.resolve(), checksum(file)) for file in data_files(path)]
        self.known_by = (_program(), template, data, files.folder_path(), *map(state, files.tars))

    def read(self) -> Verdict | None:
        """The verdict, or None where there is none, or where images came or went since."""
        try:
            told = json.loads(place_of("verdict", self.known_by).read_text(encoding="utf-8"))
            columns = np.load(place_of("columns", self.known_by), mmap_mode="r")
        except (OSError, ValueError):
            return None
        if told["folders"] != self._times(told["folders"]):
            return None
        faults = {index: ValidationError(kind, message) for index, kind, message in told["faults"]}
        return Verdict(columns, faults, told["notices"], told["images_opened"])

    def write(self, verdict: Verdict, image_folders: Iterable[str]) -> None:
        """Keeps a verdict, unless checking again costs nothing.

        Args:
            image_folders: those that images are in, as the records' names have them.
        """
        if verdict.columns.shape[1] < WORTH_KEEPING:
            return
        told: dict[str, Any] = {
            "faults": [(index, fault.kind, str(fault)) for index, fault in verdict.faults.items()],
            "notices": verdict.notices,
            "images_opened": verdict.images_opened,
            "folders": self._times(sorted(image_folders)[:_MOST_FOLDERS]),
        }

        remember_array(place_of("columns", self.known_by), verdict.columns)
        text = json.dumps(told)
        remember(place_of("verdict", self.known_by), lambda out: out.write_text(text, encoding="utf-8"))

    def _times(self, folders: Iterable[str]) -> dict[str, int | None]:
        """When the last file came to or went from each folder."""
        times: dict[str, int | None] = {}
        for folder in folders:
            try:
                times[folder] = os.stat(os.path.join(self._files.folder_path(), folder)).st_mtime_ns  # noqa: PTH116, PTH118
            except OSError:
                times[folder] = None
        return times


@lru_cache
def _program() -> str:
    """A checksum of what checks records: this folder's files."""
    return sha256(b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py")))).hexdigest()


def data_files(path: str | Path) -> list[Path]:
    """The files that a ``--data_path`` leads to."""
    place = Path(path)
    if place.is_file():
        return [place]
    if place.is_dir():
        return sorted(file for file in place.rglob("*") if file.is_file())
    return sorted(map(Path, glob(str(path))))  # noqa: PTH207
