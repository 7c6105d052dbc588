"""Sampling tokens for a batch whose rows each have their own settings and their own random numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


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
        logit_bias: added to the logits of these tokens; those that the vocabulary has not are left out.
        seed: answers to the same request with the same seed are the same, whatever else is in the batch.
        max_new_tokens: bound on the answer.
        stop: strings that end it.
        top_logprobs: how many alternatives to report with each token; None reports no log-probabilities at all.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    max_new_tokens: int = 512
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None


@dataclass(frozen=True)
class SampledToken:
    """A token, and where asked for its log-probability and the likeliest tokens' in falling order.

    The log-probabilities are the model's own, before penalties, temperature and what is left out.
    """

    token: int
    logprob: float | None = None
    top: list[tuple[int, float]] = field(default_factory=list)


class Sampler:
    """Samples the tokens of one answer.

    Args:
        sampling: the settings.
        prompt: token ids, which the repetition penalty counts too.
    """

    def __init__(self, sampling: Sampling, prompt: Sequence[int] = ()) -> None:
        self._sampling, self._prompt = sampling, list(prompt)
        self._rng = torch.Generator()
        if sampling.seed is None:
            self._rng.seed()
        else:
            self._rng.manual_seed(sampling.seed)
        wanted: list[LogitsProcessor] = []
        if sampling.repetition_penalty != 1:
            wanted.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
        if sampling.temperature > 0:
            wanted.append(TemperatureLogitsWarper(max(float(sampling.temperature), 1e-4)))
            if sampling.top_k > 0:
                wanted.append(TopKLogitsWarper(sampling.top_k))
            if sampling.top_p < 1:
                wanted.append(TopPLogitsWarper(float(sampling.top_p)))
            if sampling.min_p > 0:
                wanted.append(MinPLogitsWarper(float(sampling.min_p)))
        self._processors = LogitsProcessorList(wanted)

    @torch.inference_mode()
    def sample(self, logits: Tensor, answer: Sequence[int] = ()) -> SampledToken:
        """The next token.

        Args:
            logits: (vocabulary,), of any floating dtype; not changed.
            answer: the tokens so far.
        """
        sampling, logits = self._sampling, logits.float()
        scores = logits.clone()
        for token, bias in sampling.logit_bias.items():
            if token < len(scores):
                scores[token] += bias
        if answer and (sampling.frequency_penalty or sampling.presence_penalty):
            tokens, counts = torch.tensor(answer, device=logits.device).unique(return_counts=True)
            scores[tokens] -= sampling.frequency_penalty * counts + sampling.presence_penalty
        if self._processors:
            ids = torch.tensor([[*self._prompt, *answer]], dtype=torch.long, device=logits.device)
            scores = self._processors(ids, scores[None])[0]  # type: ignore[arg-type]
        if sampling.temperature > 0:
            token = int(torch.multinomial(scores.softmax(-1).cpu(), 1, generator=self._rng))
        else:
            token = int(scores.argmax())
        if sampling.top_logprobs is None:
            return SampledToken(token)
        logprobs = torch.log_softmax(logits, -1)
        values, ids = logprobs.topk(sampling.top_logprobs)
        return SampledToken(token, float(logprobs[token]), list(zip(ids.tolist(), values.tolist(), strict=True)))
