"""Sampling tokens for a batch whose rows each have their own settings and their own random numbers."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How one answer is sampled.

    Attributes:
        temperature: 0 takes the likeliest token each time.
        top_p: share of the probability that is sampled from, in (0, 1].
        top_k: how many of the likeliest tokens are sampled from; 0 is all.
        min_p: tokens less likely than this share of the likeliest one's probability are left out.
        frequency_penalty, presence_penalty: taken off a token's logit, for each time it is in the answer, and once.
        repetition_penalty: divides (negative: multiplies) the logits of tokens in prompt or answer.
        seed: answers to the same request with the same seed are the same, whatever else is in the batch.
        max_new_tokens: bound on the answer.
        stop: strings that end it.
        top_logprobs: how many alternatives to tell with each token; None tells no log-probabilities at all.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    max_new_tokens: int = 512
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None

    @property
    def penalizes(self) -> bool:
        return bool(self.frequency_penalty or self.presence_penalty) or self.repetition_penalty != 1


@dataclass(frozen=True)
class SampledToken:
    """A token, and where asked for its log-probability and the likeliest tokens' in falling order.

    The log-probabilities are the model's own, before penalties, temperature and what is left out.
    """

    token: int
    logprob: float | None = None
    top: list[tuple[int, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Row:
    """What sampling needs to know of a row: its settings, its random numbers, and the tokens so far."""

    sampling: Sampling
    rng: random.Random
    prompt: Sequence[int] = ()
    answer: Sequence[int] = ()


@torch.inference_mode()
def sample(logits: Tensor, rows: Sequence[Row], suppressed: Sequence[int] = ()) -> list[SampledToken]:
    """Samples the next token of each row.

    Args:
        logits: (B, vocabulary), of any floating dtype.
        rows: B of them. One takes one random number, and none where its temperature is 0.
        suppressed: tokens that must not come.
    """
    never = torch.tensor(suppressed, dtype=torch.long, device=logits.device)
    own = logits.float().index_fill(-1, never, -float("inf"))
    penalized = [row for row, of in enumerate(rows) if of.sampling.penalizes]
    logits = own.clone() if penalized else own
    for row in penalized:
        _penalize(logits[row], rows[row])
    tokens = logits.argmax(-1).tolist()
    hot = [row for row, of in enumerate(rows) if of.sampling.temperature > 0]
    if hot:
        of = [rows[row].sampling for row in hot]
        temperatures = logits.new_tensor([max(one.temperature, 1e-4) for one in of])
        shares, least = logits.new_tensor([one.top_p for one in of]), logits.new_tensor([one.min_p for one in of])
        most = logits.new_tensor([one.top_k if one.top_k > 0 else logits.shape[-1] for one in of])
        uniform = logits.new_tensor([rows[row].rng.random() for row in hot])
        probabilities, order = torch.softmax(logits[hot] / temperatures[:, None], -1).sort(-1, descending=True)
        rank = torch.arange(probabilities.shape[-1], device=logits.device)
        left_out = (rank >= most[:, None]) | (probabilities < least[:, None] * probabilities[:, :1])
        # The share is of what top-k leaves.
        in_top_k = probabilities.masked_fill(rank >= most[:, None], 0.0)
        before = in_top_k.cumsum(-1) - in_top_k
        left_out |= before >= shares[:, None] * in_top_k.sum(-1, keepdim=True)  # the token that crosses it is in
        left_out[:, 0] = False  # also where the share is too small for its dtype and becomes 0
        kept = probabilities.masked_fill(left_out, 0.0)
        ends = kept.cumsum(-1)
        # Below the sum, or a rounding up to it would find a token of no probability.
        at = torch.searchsorted(ends, (uniform * ends[:, -1])[:, None], right=True)
        at = at.minimum((kept > 0).sum(-1, keepdim=True) - 1)
        for row, token in zip(hot, order.gather(-1, at)[:, 0].tolist(), strict=True):
            tokens[row] = token
    return [_with_logprobs(own[row], tokens[row], of.sampling) for row, of in enumerate(rows)]


def _penalize(logits: Tensor, row: Row) -> None:
    """Changes one row's logits (vocabulary,) in place."""
    sampling = row.sampling
    if sampling.repetition_penalty != 1:
        seen = torch.tensor(sorted({*row.prompt, *row.answer}), device=logits.device)
        seen = seen[seen < len(logits)]
        values = logits[seen]
        logits[seen] = torch.where(
            values > 0, values / sampling.repetition_penalty, values * sampling.repetition_penalty
        )
    if row.answer and (sampling.frequency_penalty or sampling.presence_penalty):
        answered, counts = torch.tensor(row.answer, device=logits.device).unique(return_counts=True)
        logits[answered] -= sampling.frequency_penalty * counts + sampling.presence_penalty


def _with_logprobs(logits: Tensor, token: int, sampling: Sampling) -> SampledToken:
    if sampling.top_logprobs is None:
        return SampledToken(token)
    logprobs = torch.log_softmax(logits, -1)
    values, ids = logprobs.topk(sampling.top_logprobs)
    return SampledToken(token, float(logprobs[token]), list(zip(ids.tolist(), values.tolist(), strict=True)))
