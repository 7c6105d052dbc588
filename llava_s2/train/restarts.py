"""Processes that torchrun starts again, after one of them died, meet anew."""

import os
from datetime import timedelta

import torch
from torch import distributed


def join_after_restart(timeout: float) -> None:
    """Joins this process to the others under keys of their own, where torchrun has started all of them again.

    The launcher's store outlives its processes where it is theirs too. It then still has the addresses of those
    before, and joining them hangs or fails: torch (2.15) adds no prefix for each attempt, and only its c10d rendezvous
    can be told to keep the store to itself (``TORCH_DISABLE_SHARE_RDZV_TCP_STORE``). accelerate and DeepSpeed take the
    process group that there is.

    Args:
        timeout: of a collective, in seconds.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if attempt == "0" or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or distributed.is_initialized():
        return
    store, rank, processes = next(distributed.rendezvous("env://"))
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group(
        "nccl" if on_gpu else "gloo",
        timeout=timedelta(seconds=timeout),
        store=distributed.PrefixStore(f"llava_s2_train/{attempt}", store),
        rank=rank,
        world_size=processes,
    )
