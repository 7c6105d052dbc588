"""What is worked out once about large data files, kept in the user's cache folder."""

import os
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path

from llava_s2.files import atomic_write


def cached(kind: str, sources: Sequence[Path], build: Callable[[Path], None]) -> Path:
    """The file that ``build(path)`` writes about ``sources``; built again where one of them has changed.

    It lies in ``$XDG_CACHE_HOME/llava-s2`` (``~/.cache/llava-s2``) and appears whole, whoever else builds it meanwhile.
    """
    key = blake2b(kind.encode(), digest_size=12)
    for source in sources:
        stat = source.stat()
        key.update(f"\0{source.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}".encode())
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "llava-s2"
    place = folder / f"{kind}-{key.hexdigest()}"
    if not place.exists():
        with atomic_write(place) as partial:
            build(partial)
    return place
