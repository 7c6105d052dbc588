"""Records that training could not use: what takes their place, and the log that says so."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from llava_s2.data.training_records import BadRecord

LOG = "bad_samples.jsonl"
_ATTEMPTS = 20


class BadSamples:
    """Chooses substitutes and writes the log, one JSON object a line, from every process and DataLoader worker.

    A substitute is the next record in order of length, so that batches keep the lengths and the kind that they were
    made for. It depends on nothing but the record, so that a run that goes on takes the same.

    Args:
        log: the file, ``bad_samples.jsonl`` in the run's folder.
        lengths: of all records (N,), below zero for text alone.
    """

    def __init__(self, log: Path, lengths: np.ndarray) -> None:
        self.log = log
        self._order = np.argsort(lengths, kind="stable")
        self._rank = np.empty_like(self._order)
        self._rank[self._order] = np.arange(len(self._order))

    def substitutes(self, index: int) -> list[int]:
        """The records to try in the place of one, in order."""
        ranks = (self._rank[index] + np.arange(1, min(_ATTEMPTS, len(self._order)))) % len(self._order)
        return self._order[ranks].tolist()

    def add(self, bad: BadRecord) -> None:
        """Appends to the log, in one write, so that lines of several processes stay whole."""
        with self.log.open("ab", buffering=0) as file:
            file.write(json.dumps(asdict(bad), ensure_ascii=False).encode(errors="replace") + b"\n")


def stand_ins(log: Path) -> dict[int, str]:
    """Of each record that a log names: where the one is that stands in its place."""
    lines = log.read_bytes().splitlines() if log.exists() else []
    return {bad["record"]: bad["replaced_by"] for bad in map(json.loads, lines)}


def count_bad(log: Path) -> int:
    """How many different records a log names."""
    return len(stand_ins(log))
