"""LLaVA records as a torch dataset; images open lazily."""

from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import LlavaProcessor

from llava_s2.data.bad_samples import BadSamples, stand_ins
from llava_s2.data.cache import WORTH_KEEPING, place_of, remember
from llava_s2.data.conversation import encode_record
from llava_s2.data.pixels import image_bytes
from llava_s2.data.training_records import BadRecord, TrainingRecords
from llava_s2.data.validation_error import ValidationError
from llava_s2.errors import InputError
from llava_s2.model.labels import IGNORE_INDEX
from llava_s2.model.processor import num_image_tokens
from llava_s2.model.templates import IMAGE_TOKEN, find_template


class ConversationDataset(Dataset[dict[str, torch.Tensor]]):
    """Examples for the language model's loss.

    An item holds ``input_ids`` and ``labels`` (int64, (L,)) and, where the record has images, ``pixel_values``
    (uint8, (images, 3, S, S), see `llava_s2.data.pixels`). An example longer than ``max_length`` loses its end, and
    with it the images there.

    Args:
        checked: what `check_records` returned.
        processor: the model's.
        template: see `find_template`; ``own`` is the processor's tokenizer's.
        max_length: the most tokens of an example, image tokens included.
        bad_samples: to have another record in the place of one that cannot be used, rather than an error.

    Raises:
        InputError: a record has no target within ``max_length`` tokens; found here, not in the middle of training.

    Attributes:
        features: by record number, what an item holds as ``pixel_values`` in place of its images.
    """

    def __init__(
        self,
        checked: TrainingRecords,
        processor: LlavaProcessor,
        template: str,
        max_length: int,
        bad_samples: BadSamples | None = None,
    ) -> None:
        self.records, self.bad_samples = checked.records, bad_samples
        self.processor, self.max_length = processor, max_length
        self.chat_template = find_template(template, processor.tokenizer.chat_template)
        self.features: Any = {}
        # A tokenizer makes at most one token of a byte, beside the template's own; only records that this bound does
        # not clear are tokenized here.
        shortest = [{"from": "human", "value": f"{IMAGE_TOKEN}\na"}, {"from": "gpt", "value": "a"}]
        frame = len(self._tokens({"conversations": shortest})["input_ids"])
        self._checked, self._frame = checked, frame
        bound = frame + checked.bytes_before_answer + checked.images_before_answer * num_image_tokens(processor)
        doubtful = np.flatnonzero(bound > max_length).tolist() if bad_samples is None else []
        if not doubtful:
            return
        have_targets = place_of("targets", [*checked.known_by, *self._rendering(), max_length])
        if have_targets.exists():
            return
        for index in tqdm(doubtful, desc="checking long records", delay=2):
            try:
                self._encode(self.records[index])
            except ValidationError as fault:
                raise InputError(f"{self.records.where(index)}: {fault}") from None
        if len(doubtful) >= WORTH_KEEPING:
            remember(have_targets, lambda out: out.touch())

    def _rendering(self) -> tuple[object, ...]:
        """What decides the tokens of a record."""
        rules = getattr(self.processor.tokenizer, "backend_tokenizer", None)
        tokenizer = rules.to_str() if rules is not None else id(self)  # of this process alone
        return self.chat_template, num_image_tokens(self.processor), tokenizer

    def too_long(self, limit: int | None = None, name: str = "--model_max_length") -> str | None:
        """Says how many records are longer than a limit, or None. Of more than 1,000 that may be, 1,000 are tokenized.

        Args:
            limit: in tokens; by default the length that examples are cut to.
            name: the limit's, for the message.
        """
        cut = limit is None
        limit = self.max_length if limit is None else limit
        checked, run = self._checked, num_image_tokens(self.processor)
        doubtful = np.flatnonzero(checked.bytes + checked.images * run > limit - self._frame)
        sampled = doubtful[np.linspace(0, len(doubtful) - 1, min(len(doubtful), 1000)).astype(int)].tolist()
        long = []
        for index in tqdm(sampled, desc="counting long records", delay=2):
            length = len(self._tokens(self.records[index])["input_ids"])
            if length > limit:
                long.append((index, length))
        if not long:
            return None
        index, length = long[0]
        count = round(len(long) / len(sampled) * len(doubtful))
        about = "" if len(doubtful) == len(sampled) else "about "
        lost = ", which it loses at its end" if cut else ""
        return (
            f"{self.records.where(index)}: {length} tokens, {length - limit} more than {name}{lost}; so do "
            f"{about}{count:,} of {len(self.records):,} records"
        )

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        try:
            return self._item(index)
        except ValidationError as fault:
            where = self.records.where(index)
            if self.bad_samples is None:
                raise InputError(f"{where}: {fault}") from None
            error = str(fault)
        for other in self.bad_samples.substitutes(index):
            try:
                item = self._item(other)
            except ValidationError:
                continue
            bad = BadRecord(self.records.position(index), where, error, self.records.where(other))
            self.bad_samples.add(bad)
            return item
        raise InputError(f"{where}: {error} (and so with all the records tried in its place: are the images there?)")

    def _item(self, index: int) -> dict[str, torch.Tensor]:
        record = self.records[index]
        encoded, images_kept = self._encode(record)
        item = {name: torch.tensor(values) for name, values in encoded.items()}
        if images_kept:
            pixels = self.features[index] if index in self.features else self.pixels(index)
            assert pixels is not None
            item["pixel_values"] = pixels[:images_kept]
        return item

    def where(self, index: int) -> str:
        """Names the record that an item was made of, for a message."""
        others = {} if self.bad_samples is None else stand_ins(self.bad_samples.log)
        return others.get(self.records.position(index), self.records.where(index))

    def pixels(self, index: int) -> torch.Tensor | None:
        """The images of a record, uint8 (images, 3, S, S), or None of a record without any."""
        images = self.records.open_images(index)
        return image_bytes(self.processor.image_processor, images) if images else None

    def _tokens(self, record: dict[str, Any]) -> dict[str, list[int]]:
        return encode_record(record, self.processor, self.chat_template)

    def _encode(self, record: dict[str, Any]) -> tuple[dict[str, list[int]], int]:
        """Returns ids and labels cut to the length allowed, and the number of images they still hold."""
        encoded = self._tokens(record)
        input_ids, run = encoded["input_ids"], num_image_tokens(self.processor)
        end = min(len(input_ids), self.max_length)
        images = input_ids[:end].count(self.processor.image_token_id)
        if images % run:  # the cut falls into an image: leave out the whole image
            end = _position(input_ids, self.processor.image_token_id, images // run * run)
        if all(label == IGNORE_INDEX for label in encoded["labels"][:end]):
            raise ValidationError(
                "no_target",
                f"no target within --model_max_length {self.max_length} of its {len(input_ids)} tokens; raise it or "
                "shorten the record",
            )
        return {name: values[:end] for name, values in encoded.items()}, images // run


def _position(values: list[int], wanted: int, count: int) -> int:
    """Returns the index of the occurrence of ``wanted`` that has ``count`` others before it."""
    return [index for index, value in enumerate(values) if value == wanted][count]
