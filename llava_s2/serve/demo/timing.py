"""Where the time of an answer goes: the vision tower, the prompt, the answer."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import LlavaForConditionalGeneration


@dataclass
class Timing:
    """Seconds spent in the vision tower, in the language model on the prompt, and on the answer's other tokens."""

    tower: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0


@contextmanager
def stopwatch(model: LlavaForConditionalGeneration) -> Iterator[Timing]:
    """Times the model's parts while the context is open, by forward hooks; it must be the only one that runs the model.

    The language model's first pass is the prompt's, the others are the answer's.
    """
    timing = Timing()
    tower: nn.Module = model.model.vision_tower
    language_model: nn.Module = model.model.language_model
    started: dict[nn.Module, float] = {}
    passes = 0

    def begin(module: nn.Module, _: Any) -> None:
        started[module] = _now(model.device)

    def end(module: nn.Module, *_: Any) -> None:
        nonlocal passes
        seconds = _now(model.device) - started[module]
        if module is tower:
            timing.tower += seconds
        elif passes == 0:
            timing.prefill += seconds
        else:
            timing.decode += seconds
        passes += module is language_model

    hooks = [
        hook
        for module in (tower, language_model)
        for hook in (module.register_forward_pre_hook(begin), module.register_forward_hook(end))
    ]
    try:
        yield timing
    finally:
        for hook in hooks:
            hook.remove()


def _now(device: torch.device) -> float:
    if device.type == "cuda":  # work is only queued there
        torch.cuda.synchronize(device)
    return time.perf_counter()
