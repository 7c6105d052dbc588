"""LLaVA records as a torch dataset: what can be checked cheaply is checked before training, images open lazily."""

from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import LlavaProcessor

from llava_s2.data.conversation import IGNORE_INDEX, encode_conversation, to_messages
from llava_s2.data.images import open_image
from llava_s2.data.pixels import image_bytes
from llava_s2.data.records import Records, image_names
from llava_s2.errors import InputError
from llava_s2.model.processor import num_image_tokens
from llava_s2.model.tokenizer import IMAGE_TOKEN

_IMAGES_DECODED_AHEAD = 1000  # records; all of a small set, a sample of a large one
_UNKNOWN = 1 << 40  # more than any length allowed, so that the record is looked at


@dataclass
class TrainingRecords:
    """A data file that passed `check_records`, with what batching needs to know of each record."""

    records: Records
    image_folder: Path | None
    lengths: np.ndarray  # int64 (N,): words; below zero for text alone, as LLaVA's modality lengths
    images_before_answer: np.ndarray  # int64 (N,)
    bytes_before_answer: np.ndarray  # int64 (N,): UTF-8 bytes of the first question; huge if its answer is empty


def check_records(data_path: str | Path, image_folder: str | Path | None, template: str) -> TrainingRecords:
    """Reads a training file once and checks every record, without a model: about 20 s for 665k records.

    Checked are the turns, that each ``<image>`` has its image and the file is there, and, for up to 1,000 records
    spread over the file, that the images decode.

    Raises:
        InputError: naming the first record at fault and how many there are.
    """
    folder = Path(image_folder) if image_folder is not None else None
    if folder is not None and not folder.is_dir():
        raise InputError(f"{folder}: no such image folder")
    lengths, images, size = array("q"), array("q"), array("q")
    faults: list[tuple[int, str]] = []

    def visit(index: int, record: dict[str, Any]) -> None:
        try:
            messages = to_messages(record.get("conversations", []), template)
            names = image_names(record)
            tags = sum(message["content"].count(IMAGE_TOKEN) for message in messages)
            if tags != len(names):
                raise InputError(f'{tags} {IMAGE_TOKEN} in its turns, but {len(names)} in "image"')
            for name in names:
                if not _image_path(folder, name).exists():
                    raise InputError(f"{_image_path(folder, name)}: no such image file")
        except InputError as error:
            faults.append((index, str(error)))
            return
        words = sum(len(message["content"].split()) for message in messages)
        lengths.append(words if names else -words)
        images.append(messages[0]["content"].count(IMAGE_TOKEN))
        size.append(len(messages[0]["content"].encode()) if messages[1]["content"].strip() else _UNKNOWN)

    records = Records(data_path, visit)
    if faults:
        index, message = faults[0]
        more = f" ({len(faults)} records of {len(records)} are at fault)" if len(faults) > 1 else ""
        raise InputError(f"{records.where(index)}: {message}{more}")
    sample = np.linspace(0, len(records) - 1, min(len(records), _IMAGES_DECODED_AHEAD)).astype(int)
    for index in tqdm(sample.tolist(), desc="checking images", delay=2):
        _open_images(records, index, folder)
    counts = (np.frombuffer(values, np.int64) for values in (lengths, images, size))
    return TrainingRecords(records, folder, *counts)


class ConversationDataset(Dataset[dict[str, torch.Tensor]]):
    """Examples for the language model's loss.

    An item holds ``input_ids`` and ``labels`` (int64, (L,)) and, where the record has images, ``pixel_values``
    (uint8, (images, 3, S, S), see `llava_s2.data.pixels`). An example longer than ``max_length`` loses its end, and
    with it the images there.

    Args:
        checked: what `check_records` returned.
        processor: the model's.
        template: the conversation template's name, see `encode_conversation`.
        max_length: the most tokens of an example, image tokens included.

    Raises:
        InputError: a record has no target within ``max_length`` tokens; found here, not in the middle of training.

    Attributes:
        features: by record number, what an item holds as ``pixel_values`` in place of its pictures.
    """

    def __init__(self, checked: TrainingRecords, processor: LlavaProcessor, template: str, max_length: int) -> None:
        self.records, self.image_folder = checked.records, checked.image_folder
        self.processor, self.template, self.max_length = processor, template, max_length
        self.features: Any = {}
        # A tokenizer makes at most one token of a byte, beside the template's own; only records that this bound does
        # not clear are tokenized here.
        shortest = [{"from": "human", "value": f"{IMAGE_TOKEN}\na"}, {"from": "gpt", "value": "a"}]
        frame = len(encode_conversation(shortest, processor, template)["input_ids"])
        bound = frame + checked.bytes_before_answer + checked.images_before_answer * num_image_tokens(processor)
        for index in tqdm(np.flatnonzero(bound > max_length).tolist(), desc="checking long records", delay=2):
            self._encode(index, self.records[index])

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        record = self.records[index]
        encoded, images_kept = self._encode(index, record)
        item = {name: torch.tensor(values) for name, values in encoded.items()}
        if images_kept:
            pixels = self.features[index] if index in self.features else self.pixels(index)
            assert pixels is not None
            item["pixel_values"] = pixels[:images_kept]
        return item

    def pixels(self, index: int) -> torch.Tensor | None:
        """The images of a record, uint8 (images, 3, S, S), or None of a record without any."""
        images = _open_images(self.records, index, self.image_folder)
        return image_bytes(self.processor.image_processor, images) if images else None

    def _encode(self, index: int, record: dict[str, Any]) -> tuple[dict[str, list[int]], int]:
        """Returns ids and labels cut to the length allowed, and the number of images they still hold."""
        encoded = encode_conversation(record["conversations"], self.processor, self.template)
        input_ids, run = encoded["input_ids"], num_image_tokens(self.processor)
        end = min(len(input_ids), self.max_length)
        images = input_ids[:end].count(self.processor.image_token_id)
        if images % run:  # the cut falls into an image: leave out the whole image
            end = _position(input_ids, self.processor.image_token_id, images // run * run)
        if all(label == IGNORE_INDEX for label in encoded["labels"][:end]):
            raise InputError(
                f"{self.records.where(index)}: no target within --model_max_length {self.max_length} of its "
                f"{len(input_ids)} tokens; raise it or shorten the record"
            )
        return {name: values[:end] for name, values in encoded.items()}, images // run


def _position(values: list[int], wanted: int, count: int) -> int:
    """Returns the index of the occurrence of ``wanted`` that has ``count`` others before it."""
    return [index for index, value in enumerate(values) if value == wanted][count]


def _image_path(folder: Path | None, name: str) -> Path:
    return Path(name) if folder is None else folder / name


def _open_images(records: Records, index: int, folder: Path | None) -> list[Any]:
    try:
        return [open_image(_image_path(folder, name)) for name in image_names(records[index])]
    except InputError as error:
        raise InputError(f"{records.where(index)}: {error}") from None
