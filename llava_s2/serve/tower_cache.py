"""What the tower makes of images, kept for the next question about them."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from PIL import Image
from torch import Tensor
from transformers import LlavaForConditionalGeneration

DEFAULT_BYTES = 256 << 20
"""Of features, unless a server is told otherwise."""


@dataclass(frozen=True, eq=False)
class KeyedImage:
    """An image (RGB, any size) and what it is known by."""

    image: Image.Image

    @cached_property
    def key(self) -> str:
        """Digest of its pixels."""
        digest = hashlib.sha256(repr(self.image.size).encode())
        digest.update(self.image.tobytes())
        return digest.hexdigest()


def image_features(model: LlavaForConditionalGeneration, pixel_values: Tensor) -> Tensor:
    """What tower and projector make of images.

    Args:
        model: in eval mode.
        pixel_values: (n, 3, S, S), float.

    Returns:
        (n, tokens, hidden), in the model's dtype and on its device.
    """
    pixels = pixel_values.to(model.device, model.dtype)
    return torch.stack(list(model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output))


def embed_prompts(
    model: LlavaForConditionalGeneration, ids: Tensor, mask: Tensor, features: Sequence[Tensor]
) -> Tensor:
    """The language model's input with images in their places, as ``model.forward`` puts them.

    Args:
        model: in eval mode.
        ids, mask: (B, L), int64; 1 in the mask where there is a token.
        features: (tokens, hidden) of every image, in the order of their placeholders.

    Returns:
        (B, L, hidden), in the model's dtype.
    """
    embeddings = model.get_input_embeddings()(ids)
    if features:
        places = (ids == model.config.image_token_id) & mask.bool()
        embeddings[places.to(embeddings.device)] = torch.cat(list(features)).to(embeddings)
    return embeddings


class FeatureCache:
    """The latest features by their image's content, up to a number of bytes. Safe to use from several threads.

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
        """Features (tokens, hidden) of the image with this digest, if they are still here."""
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
