"""Rows of Parquet files as the hub stores data sets, their images left in the file until they are needed."""

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from llava_s2.errors import InputError
from llava_s2.eval.benchmark import Embedded


def find_shards(folder: Path, split: str) -> list[Path]:
    """The files ``SPLIT-00000-of-00003….parquet`` of a folder, in order; none if it holds none.

    Raises:
        InputError: some of them are missing, so that questions would be.
    """
    paths = sorted(folder.glob(f"{split}-*.parquet"))
    numbers = {m[1]: m[2] for path in paths if (m := re.match(rf"{re.escape(split)}-(\d+)-of-(\d+)", path.name))}
    for total in numbers.values():
        if int(total) != len(paths):
            raise InputError(f"{folder}: {len(paths)} of the {int(total)} files {split}-*.parquet; download the others")
    return paths


def read_rows(path: Path, columns: Sequence[str], images: Sequence[str]) -> list[dict[str, Any]]:
    """The file's rows.

    Args:
        path: a Parquet file.
        columns: taken as they are.
        images: columns that hold ``{"bytes": …, "path": …}`` or null; each becomes an ``Embedded`` or None. One that
            holds texts is left as it is.

    Raises:
        InputError: the file cannot be read or lacks a column, or pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise InputError('reading Parquet files takes pyarrow: pip install "llava-s2[eval]"') from None
    try:
        with pq.ParquetFile(path) as file:
            if missing := {*columns, *images} - set(file.schema_arrow.names):
                raise InputError(f"{path}: has no column {', '.join(sorted(missing))}")
            texts = [image for image in images if not pa.types.is_struct(file.schema_arrow.field(image).type)]
            images = [image for image in images if image not in texts]
            table = file.read(columns=[*columns, *texts, *(f"{image}.path" for image in images)])
            groups = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: cannot be read as Parquet ({error})") from None
    places = [(group, offset) for group, count in enumerate(groups) for offset in range(count)]
    rows = table.to_pylist()
    for number, (row, place) in enumerate(zip(rows, places, strict=True), start=1):
        for image in images:
            where = f"{path}, row {number}, {image}"
            row[image] = None if row[image] is None else _embedded(path, place, image, where)
    return rows


def _embedded(path: Path, place: tuple[int, int], column: str, where: str) -> Embedded:
    group, offset = place

    def read() -> bytes:
        value = _column(path, group, column)[offset].as_py()["bytes"]
        if not value:
            raise InputError(f"{where}: no image bytes")
        return value

    return Embedded(where, read)


@lru_cache(maxsize=4)
def _column(path: Path, group: int, column: str) -> Any:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        return file.read_row_group(group, columns=[column]).column(column)
