"""Tar files read at random: an index of the members is built once, after that a member costs one seek."""

import os
import tarfile
from collections.abc import Sequence
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from llava_s2.data.cache import cached
from llava_s2.data.image_decoding import Embedded
from llava_s2.errors import InputError


class TarMembers:
    """The files in tars by name: 28 bytes of memory a member, whatever its name.

    Args:
        paths: uncompressed tar files; of a name that several hold the first counts.

    Raises:
        InputError: one is no tar file, is compressed or cut off.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        found = []
        for number, path in enumerate(tqdm(self.paths, desc="indexing tar files", unit="file", delay=2)):
            index = np.load(cached("tar-names", [path], partial(_save_names, path)))
            found.append((index["names"], np.full(len(index["names"]), number, np.int32), index["places"]))
        names, shards, places = (np.concatenate(parts) for parts in zip(*found, strict=True))
        order = np.argsort(names, kind="stable")
        self._names, self._shards, self._places = names[order], shards[order], places[order]

    def find(self, name: str) -> Embedded | None:
        """The member of that name, or None."""
        key = _key(name)
        position = int(np.searchsorted(self._names, key))
        if position == len(self._names) or self._names[position] != key:
            return None
        path = self.paths[self._shards[position]]
        start, size = map(int, self._places[position])
        return Embedded(f"{path}: {name}", lambda: read_range(path, start, size))


def list_members(path: Path) -> list[tuple[str, int, int]]:
    """Name, first byte and size of every file in a tar, in order.

    Raises:
        InputError: it is no tar file, is compressed or cut off.
    """
    members = []
    try:
        with tarfile.open(path, "r:") as archive:
            end = path.stat().st_size
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # or it keeps every header in memory
                if member.isfile():
                    if member.offset_data + member.size > end:
                        raise InputError(f"{path}: cut off in {member.name}; fetch it again")
                    members.append((member.name.removeprefix("./"), member.offset_data, member.size))
    except (tarfile.TarError, OSError) as error:
        with path.open("rb") as file:
            packed = file.read(2) in (b"\x1f\x8b", b"BZ", b"\xfd7", b"(\xb5")
        reason = "compressed, so not to be read at random; unpack it to a plain .tar" if packed else f"no tar ({error})"
        raise InputError(f"{path}: {reason}") from None
    return members


def read_range(path: Path, start: int, size: int) -> bytes:
    """Bytes of a file. Raises InputError where it ends before them."""
    try:
        with path.open("rb") as file:
            data = os.pread(file.fileno(), size, start)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if len(data) != size:
        raise InputError(f"{path}: changed while it was in use")
    return data


def _save_names(path: Path, out: Path) -> None:
    members = list_members(path)
    arrays: dict[str, Any] = {
        "names": np.fromiter((_key(name) for name, _, _ in members), np.uint64, len(members)),
        "places": np.array([place for _, *place in members], np.int64).reshape(-1, 2),
    }
    with out.open("wb") as file:
        np.savez(file, **arrays)


def _key(name: str) -> np.uint64:
    """Of 64 bits: among a million names two are the same once in 40 million sets."""
    return np.uint64(int.from_bytes(blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest(), "little"))
