"""Training files rewritten in another shape: LLaVA's JSON, ``messages``, ShareGPT's, or a ``datasets`` folder."""

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llava_s2.data.image_decoding import Embedded
from llava_s2.data.image_files import ImageFiles
from llava_s2.data.record_shapes import LITERAL_IMAGE, Turn, count_images, images_of, read_turns
from llava_s2.data.sources import read_records
from llava_s2.data.validation_error import ValidationError
from llava_s2.errors import InputError
from llava_s2.files import atomic_write, new_folder
from llava_s2.model.templates import IMAGE_TOKEN

_LLAVA_ROLES = {"user": "human", "assistant": "gpt", "system": "system", "tool": "tool"}
_ENDINGS = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpg", b"GIF8": "gif", b"RIFF": "webp", b"II*": "tif", b"MM": "tif"}


def convert_records(source: str | Path, target: Path, shape: str, images: str | Path | None = None) -> int:
    """Writes the records of a training file in another shape; turns, system messages and images stay what they are.

    Args:
        source: of any kind that `read_records` knows.
        target: the file to write, for ``datasets`` a folder. Images that the source holds itself go to files in a
            folder beside it, ``NAME_images``.
        shape: one of ``SHAPES``.
        images: where images are, see `ImageFiles`; ``datasets`` alone copies them.

    Returns:
        How many records there are.

    Raises:
        InputError: a record cannot be read, an image is not there, or the target cannot be written.
    """
    if shape == "datasets":
        return _write_dataset(source, images, target)
    if target.is_dir():
        raise InputError(f"{target}: is a folder; name the file to write")
    write = SHAPES[shape]
    count = 0
    with atomic_write(target) as partial, partial.open("w", encoding="utf-8") as file:
        lines = target.suffix == ".jsonl"
        for name, turns, found in _read(source):
            paths = [_as_file(image, target, count, number) for number, image in enumerate(found)]
            record = ({} if name is None else {"id": name}) | write(turns, paths)
            start = "" if lines else ",\n" if count else "[\n"
            file.write(f"{start}{json.dumps(record, ensure_ascii=False)}" + ("\n" if lines else ""))
            count += 1
        file.write("" if lines else "\n]\n")
    return count


def _read(source: str | Path) -> Iterator[tuple[Any, list[Turn], list[str | Embedded]]]:
    """Id, turns and images of every record."""
    reader = read_records(source)
    for index in tqdm(range(len(reader)), desc="converting", unit="record"):
        try:
            record = reader[index]
            turns, images = read_turns(record), images_of(record)
            if sum(count_images(turn.text) for turn in turns) != len(images):
                raise ValidationError("image_placeholders", f"its turns have not one {IMAGE_TOKEN} for each image")
        except ValidationError as error:
            raise InputError(f"{reader.where(index)}: {error}") from None
        yield record.get("id"), turns, images


def _llava(turns: list[Turn], images: list[str]) -> dict[str, Any]:
    system = {"system": turns[0].text} if turns and turns[0].role == "system" else {}
    one = {} if not images else {"image": images[0] if len(images) == 1 else images}
    return one | system | {"conversations": _from_value(turns)}


def _sharegpt(turns: list[Turn], images: list[str]) -> dict[str, Any]:
    system = {"system": turns[0].text} if turns and turns[0].role == "system" else {}
    return {"conversations": _from_value(turns)} | system | ({"images": images} if images else {})


def _from_value(turns: list[Turn]) -> list[dict[str, Any]]:
    spoken = [turn for turn in turns if turn.role != "system"]
    return [{"from": _LLAVA_ROLES[turn.role], "value": turn.text, **_weight(turn)} for turn in spoken]


def _weight(turn: Turn) -> dict[str, int]:
    return {} if turn.learnt else {"weight": 0}


def _messages(turns: list[Turn], images: list[str]) -> dict[str, Any]:
    messages = [{"role": turn.role, "content": _parts(turn.text), **_weight(turn)} for turn in turns]
    return {"messages": messages} | ({"images": images} if images else {})


def _parts(text: str) -> str | list[dict[str, str]]:
    """Parts as transformers has them, where they say the same; else the text with its marks."""
    hidden = text.replace(LITERAL_IMAGE, "\0")
    if IMAGE_TOKEN not in hidden:
        return text
    if hidden.count(IMAGE_TOKEN) == 1:  # it stands in front, wherever it is written
        hidden = f"{IMAGE_TOKEN}\n{hidden.replace(IMAGE_TOKEN, '').strip()}"
    before, *behind = hidden.split(IMAGE_TOKEN)
    if not all(piece.startswith("\n") for piece in behind):
        return text
    parts = [{"type": "text", "text": before.replace("\0", IMAGE_TOKEN)}] if before else []
    for piece in behind:
        parts.append({"type": "image"})
        if piece[1:]:
            parts.append({"type": "text", "text": piece[1:].replace("\0", IMAGE_TOKEN)})
    return parts


SHAPES: dict[str, Callable[[list[Turn], list[str]], dict[str, Any]]] = {
    "llava": _llava,
    "messages": _messages,
    "sharegpt": _sharegpt,
}
"""Name of a shape -> what writes a record in it; ``datasets`` is one more."""


def _as_file(image: str | Embedded, target: Path, record: int, number: int) -> str:
    """An image's name; of one that the source holds, that of the file that is written of it."""
    if isinstance(image, str):
        return image
    data = image.read()
    ending = next((ending for magic, ending in _ENDINGS.items() if data.startswith(magic)), "img")
    folder = target.with_name(f"{target.stem}_images")
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{record:07d}_{number}.{ending}"
    (folder / name).write_bytes(data)
    return name


def _write_dataset(source: str | Path, images: str | Path | None, target: Path) -> int:
    try:
        from datasets import Dataset, Features, Image, Value, disable_progress_bars
    except ImportError:
        raise InputError("datasets is not installed: pip install 'llava-s2[train]'") from None
    text = Value("string")
    features = Features({"id": text, "messages": [{"role": text, "content": text}], "images": [Image(decode=False)]})
    disable_progress_bars()
    with new_folder(target) as partial, tempfile.TemporaryDirectory(dir=target.parent, prefix=".rows-") as cache:
        try:
            data = Dataset.from_generator(
                _rows, features=features, cache_dir=cache, gen_kwargs={"source": str(source), "images": images}
            )
        except Exception as error:
            if isinstance(error.__cause__, InputError):
                raise error.__cause__ from None
            raise
        data.save_to_disk(partial)
        return len(data)


def _rows(source: str, images: str | Path | None) -> Iterator[dict[str, Any]]:
    files = ImageFiles(images)
    for name, turns, found in _read(source):
        if not all(turn.learnt for turn in turns):
            raise InputError(f"{source}: a turn takes no loss, which the columns of a datasets folder cannot say")
        held = []
        for image in found:
            held.append({"bytes": files.read(image), "path": Path(image).name if isinstance(image, str) else None})
        messages = [{"role": turn.role, "content": turn.text} for turn in turns]
        yield {"id": None if name is None else str(name), "messages": messages, "images": held}
