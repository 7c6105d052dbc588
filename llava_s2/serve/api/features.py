"""What the tower made of pictures, kept for the next question about them."""

import threading
from collections import OrderedDict

from torch import Tensor


class FeatureCache:
    """The latest features by their picture's content, up to a number of bytes. Safe to use from several threads.

    Args:
        capacity: bytes; 0 keeps nothing.

    Attributes:
        bytes: those in use.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._lock = threading.Lock()
        self.bytes = 0

    def get(self, key: str) -> Tensor | None:
        """Features (tokens, hidden) of the picture with this digest, if they are still here."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def put(self, key: str, features: Tensor) -> None:
        """Keeps features, and drops those that were not asked for the longest."""
        with self._lock:
            if features.nbytes > self._capacity or key in self._kept:
                return
            self._kept[key] = features
            self.bytes += features.nbytes
            while self.bytes > self._capacity:
                self.bytes -= self._kept.popitem(last=False)[1].nbytes
