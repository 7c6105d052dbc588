"""How many threads torch computes with and how they wait, decided before torch is imported."""

import os
import sys
import time
from pathlib import Path

_SECONDS = 0.1  # over which the processors are watched


def choose_threads() -> None:
    """Sets OpenMP's variables for this process, and what it starts, unless the user has set them.

    Threads that wait for others at the end of a product otherwise spin, and beside another busy process the one they
    wait for is often not running: a step of training then takes tens of times as long. They wait asleep instead, and
    there are as many as processors are free now.
    """
    if "torch" in sys.modules:  # its threads are there already
        return
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("KMP_BLOCKTIME", "0")  # the same for Intel's OpenMP
    if "OMP_NUM_THREADS" not in os.environ and (free := free_processors()) is not None:
        os.environ["OMP_NUM_THREADS"] = str(free)


def free_processors() -> int | None:
    """Processors that this process may use and nobody is using now, 1 at least; None where that is not known."""
    before = _busy_seconds()
    time.sleep(_SECONDS)
    after = _busy_seconds()
    if before is None or after is None:
        return None
    free = _usable_processors() - round((after - before) / _SECONDS)
    return max(1, free // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))  # shared with a launcher's other processes


def _usable_processors() -> int:
    """Of the machine's processors, those that the process may run on, and a container's share of their time."""
    count = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return count if quota == "max" else max(1, min(count, round(int(quota) / int(period))))
    except (OSError, ValueError):
        return count


def _busy_seconds() -> float | None:
    """Processor seconds of all processes since the machine started, or None where Linux does not say."""
    try:
        user, nice, system, _, _, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split(None, 11)[1:9])
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
