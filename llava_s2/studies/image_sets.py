"""Sets of labelled images in the layouts that people have: ImageNet's, webdataset's tar files, the hub's Parquet."""

import csv
import hashlib
import io
import tarfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image
from tqdm import tqdm

from llava_s2.errors import InputError

_EXTENSIONS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}
_SPLITS = {"train": ("train", "training"), "val": ("val", "validation", "valid", "test")}
_LABEL_FILES = ("LOC_val_solution.csv", "val.txt", "synset_labels.txt", "imagenet_2012_validation_synset_labels.txt")


@dataclass(frozen=True)
class Item:
    """One image.

    Attributes:
        name: how messages and caches call it: a path, or an archive and the member or row in it.
        size: of the encoded image, in bytes.
        label: index of its class; -1 where the study needs none.
        open: a stream of the encoded image.
    """

    name: str
    size: int
    label: int
    open: Callable[[], BinaryIO] = field(compare=False, repr=False)

    def image(self) -> Image.Image:
        """The image in RGB.

        Raises:
            InputError: it cannot be decoded.
        """
        try:
            with self.open() as stream, Image.open(stream) as image:
                return image.convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise InputError(f"{self.name}: cannot be decoded as an image ({error}); replace or delete it") from None


@dataclass(frozen=True)
class ImageSet:
    """Images of one split, in a fixed order.

    Attributes:
        classes: names of the classes; a label is an index into them.
    """

    items: list[Item]
    classes: list[str]

    def __len__(self) -> int:
        return len(self.items)

    def first(self, count: int | None) -> "ImageSet":
        """At most `count` images, spread evenly over the set so that all classes stay."""
        if count is None or count >= len(self.items):
            return self
        return self.pick([index * len(self.items) // count for index in range(count)])

    def pick(self, indices: Iterable[int]) -> "ImageSet":
        """The images of these indices, in their order."""
        return ImageSet([self.items[index] for index in indices], self.classes)

    def digest(self) -> str:
        """A key of the images' content: names, sizes, and the first and last 4 kB of every file."""
        digest = hashlib.blake2b(digest_size=16)
        for item in self.items:
            with item.open() as stream:
                head = stream.read(4096)
                stream.seek(max(item.size - 4096, 0))
                digest.update(f"{item.name}\0{item.size}\0{item.label}\0".encode() + head + stream.read())
        return digest.hexdigest()


def check_images(images: ImageSet) -> None:
    """Decodes every image, a JPEG at an eighth of its size.

    Raises:
        InputError: one is broken; the message names the first and says how many there are.
    """

    def problem(item: Item) -> str | None:
        try:
            with item.open() as stream, Image.open(stream) as image:
                image.draft("RGB", (image.width // 8, image.height // 8))
                image.load()
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            return f"{item.name}: cannot be decoded as an image ({error})"
        return None

    with ThreadPoolExecutor() as pool:
        found = list(tqdm(pool.map(problem, images.items), total=len(images), desc="check images", unit="image"))
    if problems := [line for line in found if line]:
        more = f"; {len(problems) - 1} more cannot be decoded either" if len(problems) > 1 else ""
        raise InputError(f"{problems[0]}{more}; replace or delete them")


def load_image_sets(data: Path, labels: Path | None = None) -> dict[str, ImageSet]:
    """The splits ``train`` and ``val`` that a folder holds; one of them may be missing.

    Understood are, in this order: webdataset (``train-000.tar``: ``KEY.jpg`` with ``KEY.cls`` of a number), the hub's
    Parquet (``data/train-00000-of-….parquet`` with ``image`` and ``label``), and folders ``train`` and ``val`` (beside
    each other, or as in Kaggle's ``ILSVRC/Data/CLS-LOC``) with a folder for each class. ``val`` may be flat with a
    label file instead: Kaggle's ``LOC_val_solution.csv``, ``val.txt`` with ``NAME INDEX`` or ``NAME CLASS`` a line, or
    a file with a class a line, in the order of the images' names. A folder of images alone is one split, ``train``.

    Args:
        data: the folder. labels: label file of a flat ``val``; searched for if it is not given.

    Raises:
        InputError: no layout fits, or parts of one contradict each other.
    """
    if not data.is_dir():
        raise InputError(f"{data}: there is no such folder; name one with --data")
    for pattern, reader in (("*.tar", _tars), ("*.parquet", _parquet)):
        files = sorted([*data.glob(pattern), *data.glob(f"data/{pattern}")])
        if files:
            return _with_classes(_by_split(files, reader, data))
    root = next((path for path in (data, data / "ILSVRC/Data/CLS-LOC", data / "Data/CLS-LOC") if _split(path)), data)
    folders = {split: path for split in _SPLITS if (path := _split(root, split)) is not None}
    if not folders:
        items = [_file_item(path, data, -1) for path in _images_below(data)]
        if not items:
            raise InputError(f"{data}: holds no images, no train and val folders, no .tar and no .parquet files")
        return {"train": ImageSet(items, [])}
    classes: list[str] | None = None
    sets: dict[str, ImageSet] = {}
    for split, folder in folders.items():
        if any(path.is_dir() for path in folder.iterdir()):
            sets[split] = _class_folders(folder, data, classes)
        else:
            sets[split] = _flat(folder, data, classes, labels or _find_labels(data, folder))
        classes = classes or sets[split].classes
    return sets


def one_split(sets: dict[str, ImageSet], name: str, data: Path) -> ImageSet:
    """The split of that name.

    Raises:
        InputError: it is missing, or its images have no labels.
    """
    if name not in sets:
        raise InputError(f"{data}: there is no {name} split; add {name}/ with a folder of images for each class")
    if any(item.label < 0 for item in sets[name].items):
        raise InputError(f"{data}: its images have no classes; put them into {name}/CLASS/ folders")
    return sets[name]


def _split(root: Path, name: str = "train") -> Path | None:
    return next((root / word for word in _SPLITS[name] if (root / word).is_dir()), None)


def _images_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in _EXTENSIONS and path.is_file())


def _file_item(path: Path, data: Path, label: int) -> Item:
    size = path.stat().st_size
    if not size:
        raise InputError(f"{path}: the file is empty; replace or delete it")
    return Item(path.relative_to(data).as_posix(), size, label, lambda: path.open("rb"))


def _class_folders(folder: Path, data: Path, classes: list[str] | None) -> ImageSet:
    found = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if loose := [path for path in folder.iterdir() if path.suffix.lower() in _EXTENSIONS]:
        raise InputError(f"{loose[0]}: lies beside the class folders; move it into one")
    if unknown := sorted(set(found) - set(classes or found)):
        raise InputError(f"{folder / unknown[0]}: this class is not in train; delete the folder or add it there")
    classes = classes or found
    items: list[Item] = []
    for name in found:
        paths = _images_below(folder / name)
        if not paths:
            raise InputError(f"{folder / name}: holds no images; add some or delete the folder")
        items += [_file_item(path, data, classes.index(name)) for path in paths]
    return ImageSet(items, classes)


def _find_labels(data: Path, folder: Path) -> Path | None:
    places = [
        folder,
        folder.parent,
        data,
        data / "ImageSets/CLS-LOC",
        folder.parent.parent.parent / "ImageSets/CLS-LOC",
    ]
    return next((place / name for name in _LABEL_FILES for place in places if (place / name).is_file()), None)


def _flat(folder: Path, data: Path, classes: list[str] | None, labels: Path | None) -> ImageSet:
    """A folder of images whose classes a file tells."""
    paths = _images_below(folder)
    if labels is None or not labels.is_file():
        raise InputError(f"{folder}: flat, without a label file; name one with --val-labels, or make class folders")
    if classes is None:
        raise InputError(f"{folder}: flat, and there is no train folder beside it whose class folders name the classes")
    names = {path.stem: path for path in paths}
    lines = [line for line in labels.read_text(encoding="utf-8").splitlines() if line.strip()]
    if labels.suffix == ".csv":
        rows = csv.DictReader(lines)
        if not {"ImageId", "PredictionString"} <= set(rows.fieldnames or ()):
            raise InputError(f"{labels}: has no columns ImageId and PredictionString, as Kaggle's file does")
        told = [(row["ImageId"], (row["PredictionString"] or "").split()[:1]) for row in rows]
    elif all(len(line.split()) == 1 for line in lines):
        if len(lines) != len(paths):
            raise InputError(f"{labels}: {len(lines)} lines for {len(paths)} images in {folder}")
        if all(line.strip().isdigit() for line in lines) and not set(map(str.strip, lines)) <= set(classes):
            raise InputError(
                f"{labels}: numbers alone; the devkit's ILSVRC2012_IDs are in another order than the class folders. "
                "Give val.txt (NAME INDEX), LOC_val_solution.csv, or a file with a class name a line"
            )
        told = [(path.stem, [line.strip()]) for path, line in zip(paths, lines, strict=True)]
    else:
        told = [(Path(line.split()[0]).stem, line.split()[1:2]) for line in lines]
    items = []
    for number, (stem, words) in enumerate(told, 1):
        if stem not in names:
            raise InputError(f"{labels}, line {number}: there is no image {stem} in {folder}")
        word = words[0] if words else ""
        if word in classes:
            label = classes.index(word)
        elif word.isdigit() and int(word) < len(classes):
            label = int(word)
        else:
            raise InputError(f"{labels}, line {number}: {word or '(nothing)'} is none of the {len(classes)} classes")
        items.append(_file_item(names.pop(stem), data, label))
    if names:
        raise InputError(f"{next(iter(names.values()))}: {labels} does not name it ({len(names)} such images)")
    return ImageSet(items, classes)


def _by_split(files: Sequence[Path], reader: Callable[[Path, Path], list[Item]], data: Path) -> dict[str, list[Item]]:
    sets: dict[str, list[Item]] = {}
    for file in files:
        split = next((s for s, words in _SPLITS.items() if file.name.split("-")[0].split(".")[0] in words), "train")
        sets.setdefault(split, []).extend(reader(file, data))
    return sets


def _with_classes(sets: dict[str, list[Item]]) -> dict[str, ImageSet]:
    classes = [str(label) for label in range(1 + max(item.label for items in sets.values() for item in items))]
    return {split: ImageSet(items, classes) for split, items in sets.items()}


def _tars(file: Path, data: Path) -> list[Item]:
    try:
        with tarfile.open(file) as tar:
            members = [member for member in tar if member.isfile()]
            classes = {m.name.rsplit(".", 1)[0]: _number(tar, m, file) for m in members if m.name.endswith(".cls")}
    except tarfile.TarError as error:
        raise InputError(f"{file}: cannot be read as a tar file ({error})") from None
    items = []
    for member in members:
        key, _, extension = member.name.rpartition(".")
        if f".{extension.lower()}" not in _EXTENSIONS:
            continue
        if key not in classes:
            raise InputError(f"{file}: {member.name} has no {key}.cls beside it")
        name = f"{file.relative_to(data).as_posix()}:{member.name}"
        items.append(Item(name, member.size, classes[key], _slice(file, member.offset_data, member.size)))
    if not items:
        raise InputError(f"{file}: holds no images")
    return items


def _number(tar: tarfile.TarFile, member: tarfile.TarInfo, file: Path) -> int:
    stream: Any = tar.extractfile(member)
    text = stream.read().decode(errors="replace").strip()
    if not text.isdigit():
        raise InputError(f"{file}: {member.name} holds {text!r}, which is no class number")
    return int(text)


def _slice(file: Path, start: int, size: int) -> Callable[[], BinaryIO]:
    def read() -> BinaryIO:
        with file.open("rb") as stream:
            stream.seek(start)
            return io.BytesIO(stream.read(size))

    return read


def _parquet(file: Path, data: Path) -> list[Item]:
    try:
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq
    except ImportError:
        raise InputError(f"{file}: needs pyarrow: pip install 'llava-s2[eval]'") from None
    try:
        parquet = pq.ParquetFile(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{file}: cannot be read as Parquet ({error})") from None
    if missing := {"image", "label"} - set(parquet.schema_arrow.names):
        raise InputError(f"{file}: has no column {min(missing)}, only {', '.join(parquet.schema_arrow.names)}")
    items: list[Item] = []
    for group in range(parquet.num_row_groups):
        labels = parquet.read_row_group(group, columns=["label"])["label"].to_pylist()
        images = parquet.read_row_group(group, columns=["image"])["image"]
        sizes = pc.binary_length(pc.struct_field(images, "bytes")).to_pylist()
        for row, (label, size) in enumerate(zip(labels, sizes, strict=True)):
            name = f"{file.relative_to(data).as_posix()}:{len(items)}"
            if label is None or label < 0 or not size:
                raise InputError(f"{name}: has no {'label' if size else 'image bytes'}")
            items.append(Item(name, size, label, partial(_cell, file, group, row)))
    return items


def _cell(file: Path, group: int, row: int) -> BinaryIO:
    return io.BytesIO(_group(file, group)[row].as_py())


@lru_cache(maxsize=4)  # images are read in order, so that a group is read once
def _group(file: Path, group: int) -> Any:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    return pc.struct_field(pq.ParquetFile(file).read_row_group(group, columns=["image"])["image"], "bytes")
