"""Some of a data set's records: what a run trains on, and what it holds out to evaluate on."""

from typing import Any

import numpy as np
from torch.utils.data import Dataset

from llava_s2.data.dataset import ConversationDataset
from llava_s2.errors import InputError


class Examples(Dataset[dict[str, Any]]):
    """The examples of a data set at some indices.

    Args:
        dataset: all of them.
        indices: int64 (N,); None for all.
    """

    def __init__(self, dataset: ConversationDataset, indices: np.ndarray | None = None) -> None:
        self.dataset = dataset
        self.indices = np.arange(len(dataset)) if indices is None else indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.dataset[int(self.indices[index])]

    def where(self, index: int) -> str:
        """Names the record of an example, for a message."""
        return self.dataset.where(int(self.indices[index]))


def hold_out(dataset: ConversationDataset, share: float, seed: int) -> tuple[Examples, Examples]:
    """Splits a data set into examples to train on and, drawn by the seed, a share to evaluate on.

    A record that an epoch has several times is on one side alone.

    Raises:
        InputError: nothing would be left on one side.
    """
    positions = dataset.records.positions()
    records = np.unique(positions)
    drawn = np.random.default_rng(seed).permutation(records)[: round(share * len(records))]
    is_held_out = np.isin(positions, drawn)
    if not 0 < len(drawn) < len(records):
        raise InputError(f"--eval_split {share}: of {len(records)} records that leaves none on one side")
    return Examples(dataset, np.flatnonzero(~is_held_out)), Examples(dataset, np.flatnonzero(is_held_out))
