"""Files and folders that appear whole or not at all, whatever happens while they are written."""

import fcntl
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llava_s2.errors import InputError
from llava_s2.weight_files import first_line

_SPARE_BYTES = 32 * 2**20  # for tokenizer, configs and headers


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yields a path to write to; the file takes its name when the block ends without an error, and else goes away.

    Until then it stands beside ``path``, under a name that no other process or thread uses. A file of that name that
    was there before stays until the new one replaces it.

    Args:
        path: the file to write. Its folder is created.

    Usage::

        with atomic_write("report.json") as partial:
            partial.write_text(json.dumps(report))
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays: plotting and image libraries choose the format by it.
    partial = path.with_name(f".{path.stem}.{os.getpid()}-{threading.get_ident()}.partial{path.suffix}")
    try:
        yield partial
        _sync(partial)  # on the disk before it has its name
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def new_folder(dst: str | Path, needed_bytes: int = 0) -> Iterator[Path]:
    """A folder to write into that becomes ``dst`` when the block ends without an error, and else goes away.

    Until then it stands beside ``dst`` as ``.NAME.partial``. What a killed process left there is taken over by the next
    one that writes ``dst``.

    Args:
        dst: must not exist, or be an empty folder.
        needed_bytes: of the weights that will be written.

    Raises:
        InputError: ``dst`` holds something, is being written by another process, or the disk is (or becomes) full.
    """
    dst = Path(dst)
    if dst.exists() and (not dst.is_dir() or any(dst.iterdir())):
        raise InputError(f"{dst}: exists already; name a new folder")
    dst.parent.mkdir(parents=True, exist_ok=True)
    scratch = dst.parent / f".{dst.name}.partial"
    scratch.mkdir(exist_ok=True)
    lock = os.open(scratch, os.O_RDONLY)  # held until this process ends, however it does
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"{dst}: another process is writing it") from None
        try:
            _empty(scratch)
            free = shutil.disk_usage(dst.parent).free
            if free < needed_bytes + _SPARE_BYTES:
                raise InputError(
                    f"{dst}: takes {(needed_bytes + _SPARE_BYTES) / 1e9:.2f} GB, but {free / 1e9:.2f} GB are free there"
                )
            with writing(dst):
                yield scratch
                sync_folder(scratch)  # on the disk before it has its name
                os.replace(scratch, dst)  # noqa: PTH105 - takes the place of an empty folder too
                _sync(dst.parent)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
    finally:
        os.close(lock)


@contextmanager
def writing(place: str | Path) -> Iterator[None]:
    """Raises InputError, naming ``place``, where the system refuses what the block writes: a full disk, mostly."""
    try:
        yield
    except Exception as error:
        # safetensors, tokenizers and torch have exceptions of their own for that.
        of_others = ("(os error ", "PytorchStreamWriter", "inline_container.cc")
        if isinstance(error, OSError) or any(words in str(error) for words in of_others):
            raise InputError(f"{place}: could not be written ({first_line(error)})") from error
        raise


def sync_folder(folder: Path) -> None:
    """Returns when a folder and all files in it are on the disk."""
    for path in [*folder.rglob("*"), folder]:
        _sync(path)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
