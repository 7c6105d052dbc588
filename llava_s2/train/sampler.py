"""The order in which a run sees its examples."""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler
from transformers import TrainingArguments
from transformers.trainer_pt_utils import get_length_grouped_indices

FILLER = -1  # the number of an example that takes no loss


def order_seed(training: TrainingArguments) -> int:
    """The seed of the order of the data: ``--data_seed``, or ``--seed`` where there is none."""
    return training.seed if training.data_seed is None else training.data_seed


class ModalitySampler(Sampler[int]):
    """A random order in which each optimizer step sees examples of like length, all with images or all without.

    A step of text alone then skips the vision tower, and little of a batch is padding. The last steps mix what is left.
    The order depends on seed and epoch alone, so that a resumed run sees what the uninterrupted one would.

    Args:
        lengths: of the examples, below zero for those without an image.
        per_step: examples of one optimizer step, over all processes.
        seed: of the order.
    """

    def __init__(self, lengths: Sequence[int], per_step: int, seed: int) -> None:
        self._lengths, self._per_step, self._seed, self._epoch = lengths, per_step, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        steps: list[list[int]] = []
        rest: list[int] = []
        for has_images in (True, False):
            members = [index for index, length in enumerate(self._lengths) if (length >= 0) == has_images]
            lengths = [abs(int(self._lengths[index])) for index in members]
            grouped = get_length_grouped_indices(lengths, self._per_step, generator=generator) if members else []
            order = [members[position] for position in grouped]
            whole = len(order) // self._per_step * self._per_step
            steps += [order[start : start + self._per_step] for start in range(0, whole, self._per_step)]
            rest += order[whole:]
        for step in torch.randperm(len(steps), generator=generator).tolist():
            yield from steps[step]
        yield from rest


class EpochSampler(Sampler[int]):
    """A sampler's order of an epoch, filled up with `FILLER` so that every process has as many examples.

    Without the filling accelerate would repeat other examples in an epoch's last batches, and their loss would count.
    accelerate replaces a bare random sampler by one of its own; it leaves this one alone.

    Args:
        sampler: the order for all processes together; its ``set_epoch``, if it has one, chooses the epoch's order.
        multiple: examples of one batch, over all processes.
    """

    def __init__(self, sampler: Sampler[int], multiple: int = 1) -> None:
        self._sampler, self._multiple = sampler, multiple

    def set_epoch(self, epoch: int) -> None:
        set_epoch = getattr(self._sampler, "set_epoch", None)  # a sequential order has none
        if set_epoch is not None:
            set_epoch(epoch)

    def __len__(self) -> int:
        examples: int = len(self._sampler)  # type: ignore[arg-type]
        return -(-examples // self._multiple) * self._multiple

    def __iter__(self) -> Iterator[int]:
        count = 0
        for index in self._sampler:
            yield index
            count += 1
        for _ in range(-count % self._multiple):
            yield FILLER
