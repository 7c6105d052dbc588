"""What is worked out once about large data files, kept in the user's cache folder."""

import os
from collections.abc import Callable, Sequence
from hashlib import blake2b, sha256
from pathlib import Path

import numpy as np

from llava_s2.files import atomic_write

WORTH_KEEPING = 1000  # records; what is to be known of fewer is found in no time
_WHOLE_BYTES = 256 << 20  # of a binary file; a larger one is sampled, JSON is always read whole
_BLOCK = 1 << 20
_BLOCKS = 16


def cached(kind: str, sources: Sequence[Path], build: Callable[[Path], None]) -> Path:
    """The file that ``build(path)`` writes about ``sources``; built again where one of them has changed.

    It appears whole, whoever else builds it meanwhile.
    """
    place = place_of(kind, [part for source in sources for part in state(source)])
    if not place.exists():
        with atomic_write(place) as partial:
            build(partial)
    return place


def place_of(kind: str, known_by: Sequence[object]) -> Path:
    """Where ``$XDG_CACHE_HOME/llava-s2`` (``~/.cache/llava-s2``) keeps what depends on some values."""
    key = blake2b(kind.encode(), digest_size=12)
    for part in known_by:
        key.update(f"\0{part}".encode(errors="surrogateescape"))
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "llava-s2"
    return folder / f"{kind}-{key.hexdigest()}"


def checksum(path: Path) -> str:
    """A checksum of a file: all of JSON and of what is not large, else of blocks spread over it.

    It is remembered, so a file that nobody touched is read once.
    """
    place = place_of("checksum", state(path))
    try:
        return place.read_text()
    except OSError:
        found = _checksum(path)
    remember(place, lambda partial: partial.write_text(found))
    return found


def remember(place: Path, build: Callable[[Path], object]) -> None:
    """Writes a file that only saves time: where it cannot be written, it is not there."""
    try:
        with atomic_write(place) as partial:
            build(partial)
    except OSError:
        pass


def remember_array(place: Path, array: np.ndarray) -> None:
    """`remember` of an array, to be mapped into memory."""

    def save(out: Path) -> None:
        with out.open("wb") as file:
            np.save(file, array)

    remember(place, save)


def state(path: Path) -> tuple[object, ...]:
    """What changes with a file's content; the time of its last change of any kind, as programs can set the other."""
    stat = path.stat()
    return path.resolve(), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _checksum(path: Path) -> str:
    size = path.stat().st_size
    starts: Sequence[int] = range(0, size, _BLOCK)
    if size > _WHOLE_BYTES and ".json" not in "".join(path.suffixes):
        starts = np.linspace(0, size - _BLOCK, _BLOCKS).astype(int).tolist()
    digest = sha256()
    with path.open("rb") as file:
        for start in starts:
            file.seek(start)
            digest.update(file.read(_BLOCK))
    return digest.hexdigest()[:16]
