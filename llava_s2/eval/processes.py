"""One evaluation on several processes: who answers what is agreed through the launcher's key-value store.

Nothing is split beforehand: a process takes the next batch when it is free, so that a slow one holds up no other. The
store is the one that ``torchrun`` and ``accelerate launch`` set up for their processes; there are no collectives, which
would time out while one process works longer than another.
"""

import json
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import lru_cache
from typing import Any

_KEY = "llava_s2_eval"
_FOREVER = timedelta(days=365)


@lru_cache(maxsize=1)
def _meet() -> tuple[int, int, Any]:
    """Rank, number of processes and their store; once a process, however many runs it makes."""
    from torch.distributed import rendezvous

    store, rank, count = next(rendezvous("env://"))
    return rank, count, store


class Processes:
    """The processes of this run; by itself a single one.

    Attributes:
        rank: 0 in the process that checks the data, decides and reports.
        count: number of processes.
    """

    def __init__(self, rank: int = 0, count: int = 1, store: Any = None, scope: str = "") -> None:
        self.rank = rank
        self.count = count
        self._store = store
        # torchrun's store outlives a worker that it restarts; what the workers before it counted is not this run's.
        self._prefix = f"{_KEY}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{scope}"
        self._totals: dict[str, int] = {}

    @classmethod
    def from_environment(cls, scope: str = "") -> "Processes":
        """Those of the launcher that started this process, or this one alone.

        Args:
            scope: tells apart the runs of one launch.
        """
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if count == 1 or "RANK" not in os.environ or "MASTER_ADDR" not in os.environ:
            return cls()
        return cls(*_meet(), scope)

    @property
    def first(self) -> bool:
        """Whether this is the process that decides."""
        return self.rank == 0

    def share(self, name: str, value: Callable[[], Any]) -> Any:
        """The first process's value (JSON), which the others wait for; only the first calls ``value``."""
        if self.count == 1:
            return value()
        key = f"{self._prefix}/{name}"
        if self.first:
            found = value()
            self._store.set(key, json.dumps(found))
            return found
        self._store.wait([key], _FOREVER)
        return json.loads(self._store.get(key))

    def add(self, name: str, amount: int) -> int:
        """Adds to a number that all processes share and that starts at 0; returns what it is then."""
        if self.count == 1:
            self._totals[name] = self._totals.get(name, 0) + amount
            return self._totals[name]
        return self._store.add(f"{self._prefix}/{name}", amount)

    def claim(self, count: int) -> Iterator[int]:
        """Numbers from 0 to ``count`` - 1, each to one process only, to whoever asks first."""
        while (number := self.add("claimed", 1) - 1) < count:
            yield number
