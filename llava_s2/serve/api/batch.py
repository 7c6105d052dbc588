"""The running batch: stock ``model.forward`` and ``DynamicCache``, rows that join and leave between tokens."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, LlavaForConditionalGeneration

from llava_s2.serve.tower_cache import embed_prompts


class Batch:
    """Sequences that are being continued, padded on the left to one length.

    In float32 a row's logits are those it would have alone.

    Args:
        model: in eval mode, with a cache of full attention.

    Attributes:
        size: rows.
        length: columns of the cache.
    """

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        self._model = model
        self.clear()

    def clear(self) -> None:
        """Drops all rows."""
        self._cache: Any = DynamicCache()
        self._mask = torch.zeros(0, 0, dtype=torch.long, device=self._model.device)

    @property
    def size(self) -> int:
        return len(self._mask)

    @property
    def length(self) -> int:
        return self._mask.shape[1]

    @torch.inference_mode()
    def add(self, prompts: Sequence[Sequence[int]], features: Sequence[Sequence[Tensor]]) -> Tensor:
        """Reads prompts and puts them behind the rows that are there.

        Args:
            prompts: token ids of each, image placeholders expanded.
            features: for each prompt those of its images (tokens, hidden), in order.

        Returns:
            Logits (prompts, vocabulary) of their first tokens, in the model's dtype.
        """
        device = self._model.device
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
        embeddings = embed_prompts(self._model, ids, mask, [image for shown in features for image in shown])
        cache = DynamicCache()
        logits = self._forward(cache, mask, (mask.cumsum(-1) - 1).clamp(min=0), inputs_embeds=embeddings)
        self._join(cache, mask)
        return logits

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> Tensor:
        """Continues each row by its token. Returns logits (B, vocabulary) of the next ones, in the model's dtype."""
        ids = torch.tensor(tokens, device=self._mask.device)[:, None]
        self._mask = torch.cat([self._mask, torch.ones_like(ids)], 1)
        return self._forward(self._cache, self._mask, self._mask.sum(-1, keepdim=True) - 1, input_ids=ids)

    @torch.inference_mode()
    def keep(self, rows: Sequence[int]) -> None:
        """Drops the other rows, and the padding that only they needed."""
        if not rows:
            self.clear()
            return
        index = torch.tensor(rows, device=self._mask.device)
        mask = self._mask[index]
        start = int(mask.argmax(-1).min())
        self._mask = mask[:, start:]
        for layer in self._cache.layers:
            layer.keys, layer.values = layer.keys[index, :, start:], layer.values[index, :, start:]

    def _forward(self, cache: DynamicCache, mask: Tensor, positions: Tensor, **inputs: Tensor) -> Tensor:
        return self._model(
            **inputs,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]

    def _join(self, cache: Any, mask: Tensor) -> None:
        if not self.size:
            self._cache, self._mask = cache, mask
            return
        length = max(self.length, mask.shape[1])
        self._mask = torch.cat([_to_length(self._mask, length), _to_length(mask, length)])
        for layer, new in zip(self._cache.layers, cache.layers, strict=True):
            layer.keys = torch.cat([_to_length(layer.keys, length, -2), _to_length(new.keys, length, -2)])
            layer.values = torch.cat([_to_length(layer.values, length, -2), _to_length(new.values, length, -2)])


def _to_length(tensor: Tensor, length: int, dim: int = -1) -> Tensor:
    """Zeros in front of a dimension, up to a length."""
    missing = length - tensor.shape[dim]
    return pad(tensor, (missing, 0) if dim == -1 else (0, 0, missing, 0)) if missing else tensor
