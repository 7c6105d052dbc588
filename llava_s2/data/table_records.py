"""Records in the columns of Arrow and Parquet files, as ``datasets`` writes them.

Columns are the keys of records (`llava_s2.data.record_shapes`). An image is a path,
bytes, or the ``{"bytes", "path"}`` of ``datasets``, one or a list. Arrow files are mapped into memory and let go of now
and then, so a process holds little of them. Of Parquet files everything but images' bytes is copied once to an Arrow
file in the cache folder; bytes are read with their row group.
"""

import json
import mmap
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from llava_s2.data.cache import cached
from llava_s2.data.image_decoding import Embedded
from llava_s2.data.record_shapes import IMAGE_KEYS, TURN_KEYS
from llava_s2.data.validation_error import ValidationError
from llava_s2.errors import InputError

_READ_BEFORE_RELEASE = 500  # records, after which a process lets go of what it has mapped
_LARGEST_ROW_GROUP = 256 << 20  # bytes of images


class TableRecords(Sequence[dict[str, Any]]):
    """Random access to the records of Arrow or Parquet files.

    Args:
        path: what messages name: a file, or the folder or pattern that ``files`` were found by.
        files: Arrow files (streams, as ``save_to_disk`` writes) or Parquet files, not both.

    Raises:
        InputError: a file cannot be read or lacks ``conversations``, or pyarrow is not installed.
    """

    broken: dict[int, str] = {}  # noqa: RUF012  # there are none: see Records

    def __init__(self, path: Path, files: Sequence[Path]) -> None:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError:
            raise InputError(
                f"{path}: Arrow and Parquet are read with pyarrow: pip install 'llava-s2[train]'"
            ) from None
        self.path, self.files = path, list(files)
        self._parquet = self.files[0].suffix == ".parquet"
        self._tables: list[Any] | None = None
        self._maps: list[mmap.mmap] = []
        self._since_release = 0
        try:
            schema = pq.read_schema(self.files[0]) if self._parquet else pa.schema([])
            self._held = [name for name in schema.names if name not in _read_columns(schema)]
            self._arrow = [_arrow_copy(file) for file in self.files] if self._parquet else self.files
            sizes = [table.num_rows for table in self._open()]
        except (OSError, ValueError, pa.ArrowException) as error:
            raise (
                error
                if isinstance(error, InputError)
                else InputError(f"{path}: cannot be read as {'Parquet' if self._parquet else 'Arrow'} ({error})")
            ) from None
        self._ends = np.cumsum(sizes)
        if not len(self):
            raise InputError(f"{path}: holds no records")

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tables": None, "_maps": []}

    def __getitem__(self, index: int) -> dict[str, Any]:  # type: ignore[override]  # no slices
        index = range(len(self))[index]
        number = int(np.searchsorted(self._ends, index, side="right"))
        row = index - (int(self._ends[number - 1]) if number else 0)
        table = self._open()[number]
        self._since_release += 1
        record = {name: table[name][row].as_py() for name in table.column_names if name not in IMAGE_KEYS}
        record |= dict.fromkeys(self._held, Embedded("a column that is not read", bytes))
        for column in IMAGE_KEYS:
            if column not in table.column_names:
                continue
            bytes_of = _group_reader(self.files[number], row, column) if self._parquet else None
            image = _image(table[column][row], f"{self.files[number]}, row {row + 1}, {column}", bytes_of)
            if image is not None:
                record[column] = image
        return record

    def where(self, index: int) -> str:
        """Names a record for a message: file, index from 0, id where it has one."""
        record = self[index]
        return f"{self.path}: record {index}" + (f" (id {record['id']!r})" if record.get("id") is not None else "")

    def _open(self) -> list[Any]:
        """The tables, mapped; what was read of them is given back to the system from time to time."""
        import pyarrow as pa

        if self._tables is None:
            self._tables = []
            for path in self._arrow:
                with path.open("rb") as file:
                    self._maps.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
                table = pa.ipc.open_stream(pa.py_buffer(self._maps[-1])).read_all()
                _check_columns(self.path, table.schema)
                columns = _read_columns(table.schema)
                self._held = self._held or [name for name in table.column_names if name not in columns]
                self._tables.append(table.select(columns))
        if self._since_release >= _READ_BEFORE_RELEASE and hasattr(mmap, "MADV_DONTNEED"):
            self._since_release = 0
            for mapped in self._maps:
                mapped.madvise(mmap.MADV_DONTNEED)
        return self._tables


def _check_columns(path: Path, schema: Any) -> None:
    """Raises InputError where no column holds turns, or where images are in one that is not read."""
    if not set(TURN_KEYS) & set(schema.names):
        raise InputError(f"{path}: has no column conversations, but {', '.join(schema.names)}; rename it")
    read = _read_columns(schema)
    held = [name for name in schema.names if name not in read]
    if held and not any(name in IMAGE_KEYS or _holds_bytes(schema.field(name).type) for name in read):
        raise InputError(f"{path}: the column {held[0]} holds images and is not read; name it image")


def _read_columns(schema: Any) -> list[str]:
    """The columns that records are made of: all but those of bytes that are no images of theirs."""
    names = {*IMAGE_KEYS, *TURN_KEYS}
    return [field.name for field in schema if field.name in names or not _holds_bytes(field.type)]


def saved_files(folder: Path) -> list[Path]:
    """The Arrow files of a folder that ``datasets`` wrote with ``save_to_disk``; of several splits ``train``'s.

    Raises:
        InputError: there are several splits and none is ``train``.
    """
    splits = folder / "dataset_dict.json"
    if splits.is_file():
        names = json.loads(splits.read_text())["splits"]
        if "train" not in names and len(names) != 1:
            raise InputError(f"{folder}: has the splits {', '.join(names)}; name the folder of one, such as {names[0]}")
        folder = folder / ("train" if "train" in names else names[0])
    state = json.loads((folder / "state.json").read_text())
    if state.get("_indices_data_files"):
        raise InputError(f"{folder}: holds a selection; save what dataset.flatten_indices() gives")
    return [folder / file["filename"] for file in state["_data_files"]]


def _arrow_copy(path: Path) -> Path:
    """A Parquet file's columns without images' bytes as an Arrow file; in an image's place its path, "" without one."""
    return cached("parquet-text", [path], lambda out: _copy(path, out))


def _copy(path: Path, out: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        _check_columns(path, file.schema_arrow)
        columns = _read_columns(file.schema_arrow)
        leaves = [file.schema.column(number).path for number in range(len(file.schema))]
        unread = []
        for column in IMAGE_KEYS:
            own = [leaf for leaf in leaves if leaf.split(".")[0] == column]
            held = [leaf for leaf in own if leaf.split(".")[-1] == "bytes"]
            # Without a path beside them, they alone say which records have an image.
            unread += held if held != own else []
        chosen = [leaf for leaf in leaves if leaf.split(".")[0] in columns and leaf not in unread]
        for group in range(file.num_row_groups):
            row_group = file.metadata.row_group(group)
            chunks = map(row_group.column, range(row_group.num_columns))
            of_images = (chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] in IMAGE_KEYS)
            size = sum(chunk.total_uncompressed_size for chunk in of_images)
            if size > _LARGEST_ROW_GROUP:
                raise InputError(
                    f"{path}: a row group holds {size >> 20} MB of images, which would be read for each of them; write "
                    "it with row_group_size=100, or as Arrow: datasets.Dataset.from_parquet(…).save_to_disk(…)"
                )
        with tqdm(total=file.metadata.num_rows, desc=f"indexing {path.name}", unit="record", delay=2) as bar:
            writer = None
            for batch in file.iter_batches(2000, columns=chosen):
                for column in IMAGE_KEYS:
                    if column in batch.schema.names and _holds_bytes(batch.schema.field(column).type):
                        batch = _without_bytes(batch, column)
                writer = writer or pa.ipc.new_stream(out, batch.schema)
                writer.write_batch(batch)
                bar.update(len(batch))
            if writer is None:
                raise InputError(f"{path}: holds no records")
            writer.close()


def _holds_bytes(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _holds_bytes(kind.value_type)
    if pa.types.is_struct(kind):
        return any(_holds_bytes(field.type) for field in kind)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _without_bytes(batch: Any, column: str) -> Any:
    """Puts an empty path for every image that a column holds as bytes alone."""
    import pyarrow as pa

    def emptied(value: Any) -> Any:
        return None if value is None else [emptied(each) for each in value] if isinstance(value, list) else {"path": ""}

    position = batch.schema.get_field_index(column)
    values = pa.array(map(emptied, batch.column(column).to_pylist()))
    return batch.set_column(position, column, values)


def _group_reader(path: Path, row: int, column: str) -> Callable[[], Any]:
    """A function that gives the Parquet row's whole image value."""

    def read() -> Any:
        groups = _group_ends(path)
        group = int(np.searchsorted(groups, row, side="right"))
        return _group_images(path, group, column)[row - (int(groups[group - 1]) if group else 0)]

    return read


@cache
def _group_ends(path: Path) -> np.ndarray:
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(path)
    return np.cumsum([metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)])


@lru_cache(maxsize=1)
def _group_images(path: Path, group: int, column: str) -> Any:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        return file.read_row_group(group, columns=[column]).column(column)


def _image(scalar: Any, name: str, whole: Callable[[], Any] | None) -> Any:
    """A path, an `Embedded`, a list of them, or None, from a value of the image column.

    Args:
        scalar: the value; of a Parquet file without its bytes.
        whole: gives the value with its bytes, where ``scalar`` lacks them.
    """
    import pyarrow as pa

    if not scalar.is_valid:
        return None
    if pa.types.is_list(scalar.type) or pa.types.is_large_list(scalar.type):
        each = enumerate(scalar)
        return [_image(one, f"{name} {number + 1}", _item(whole, number)) for number, one in each] or None
    if pa.types.is_string(scalar.type) or pa.types.is_large_string(scalar.type):
        return scalar.as_py()
    if pa.types.is_struct(scalar.type):
        fields = {field.name for field in scalar.type}
        has_bytes = scalar["bytes"].is_valid if "bytes" in fields else whole is not None
        path = scalar["path"].as_py() if "path" in fields else None
        if not has_bytes:
            return path

        def read() -> bytes:
            value = scalar if whole is None else whole()
            data = (value["bytes"] if pa.types.is_struct(value.type) else value).as_py()
            if not data:
                raise ValidationError(
                    "missing_image", f"{name}: no bytes" + (f", only the path {path}" if path else "")
                )
            return data

        return Embedded(name, read)
    return Embedded(name, scalar.as_py)


def _item(whole: Callable[[], Any] | None, number: int) -> Callable[[], Any] | None:
    return None if whole is None else lambda: whole()[number]
