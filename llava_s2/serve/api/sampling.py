"""Drawing tokens for a batch whose rows each have their own settings and their own source of chance."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How one answer is drawn.

    Attributes:
        temperature: 0 takes the likeliest token each time.
        top_p: share of the probability that is drawn from, in (0, 1].
        seed: answers to the same request with the same seed are the same, whatever else is in the batch.
        max_new_tokens: bound on the answer.
        stop: strings that end it.
        top_logprobs: how many alternatives to tell with each token; None tells no log-probabilities at all.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    max_new_tokens: int = 512
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None


@dataclass(frozen=True)
class Drawn:
    """A token, and where asked for its log-probability and the likeliest tokens' in falling order.

    The log-probabilities are the model's own, before temperature and top-p.
    """

    token: int
    logprob: float | None = None
    top: list[tuple[int, float]] = field(default_factory=list)


@torch.inference_mode()
def draw(
    logits: Tensor, samplings: Sequence[Sampling], chances: Sequence[random.Random], suppressed: Sequence[int] = ()
) -> list[Drawn]:
    """Draws the next token of each row.

    Args:
        logits: (B, vocabulary), of any floating dtype.
        samplings, chances: of each row. A row takes one number from its chance, and none where temperature is 0.
        suppressed: tokens that must not come.
    """
    never = torch.tensor(suppressed, dtype=torch.long, device=logits.device)
    logits = logits.float().index_fill(-1, never, -float("inf"))
    tokens = logits.argmax(-1).tolist()
    drawing = [row for row, sampling in enumerate(samplings) if sampling.temperature > 0]
    if drawing:
        temperatures = logits.new_tensor([max(samplings[row].temperature, 1e-4) for row in drawing])
        shares = logits.new_tensor([samplings[row].top_p for row in drawing])
        uniform = logits.new_tensor([chances[row].random() for row in drawing])
        probabilities, order = torch.softmax(logits[drawing] / temperatures[:, None], -1).sort(-1, descending=True)
        before = probabilities.cumsum(-1) - probabilities
        outside = before >= shares[:, None]  # the token that crosses the share is in
        outside[:, 0] = False  # also where the share is too small for its dtype and becomes 0
        kept = probabilities.masked_fill(outside, 0.0)
        ends = kept.cumsum(-1)
        # Below the sum, or a rounding up to it would find a token of no probability.
        at = torch.searchsorted(ends, (uniform * ends[:, -1])[:, None], right=True)
        at = at.minimum((kept > 0).sum(-1, keepdim=True) - 1)
        for row, token in zip(drawing, order.gather(-1, at)[:, 0].tolist(), strict=True):
            tokens[row] = token
    return [_told(logits[row], tokens[row], sampling) for row, sampling in enumerate(samplings)]


def _told(logits: Tensor, token: int, sampling: Sampling) -> Drawn:
    if sampling.top_logprobs is None:
        return Drawn(token)
    logprobs = torch.log_softmax(logits, -1)
    values, ids = logprobs.topk(sampling.top_logprobs)
    return Drawn(token, float(logprobs[token]), list(zip(ids.tolist(), values.tolist(), strict=True)))
