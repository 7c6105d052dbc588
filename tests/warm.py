"""Programs of this package in processes of their own, forked from one that has imported what they import.

A Python that imports torch, transformers and DeepSpeed is busy for ten seconds before its first line of work, so only
the tests of how programs start do that. A process here is the child of a server that did nothing but import.
"""

import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import signal
import subprocess
import sys
import threading
from pathlib import Path

_IMPORTS = ["llava_s2.train.recipe", "llava_s2.eval.runner", "llava_s2.serve.api.app", "uvicorn", "deepspeed"]
_IMPORTS += ["matplotlib.figure", "torch.distributed.launcher.api", "torch.distributed.fsdp"]
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(_IMPORTS)


class Process:
    """A program, as far as tests need it with the interface of ``subprocess.Popen``; a session leader.

    Args:
        words: what follows ``python``: ``-m MODULE`` or a file, and its arguments.
        environment: variables beside those of this process.
        processes: under torchrun's agent, this many of them; 0 without it. restarts: how often the agent starts them
            again when one fails.
    """

    def __init__(self, words, environment=None, processes=0, restarts=0):
        # What is read where the server imports is the same in all processes.
        os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu"}
        reader, writer = _context.Pipe(duplex=False)
        environment = os.environ | (environment or {})
        arguments = [*map(str, words)], environment, Path.cwd(), writer, processes, restarts
        self._process = _context.Process(target=_begin, args=arguments)
        self._process.start()
        writer.close()
        self.pid = self._process.pid
        self.stdout = os.fdopen(os.dup(reader.fileno()), errors="replace")

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self.returncode

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("forked", timeout)
        return self.returncode

    def send_signal(self, number):
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        """Ends it and what it has started."""
        if self.returncode is None:
            os.killpg(self.pid, signal.SIGKILL)

    def communicate(self, timeout):
        """What it prints until it ends, and None; one that takes longer is killed."""
        timer = threading.Timer(timeout, self.kill)
        timer.start()
        printed = self.stdout.read()
        status = self.wait(timeout)
        if not timer.is_alive() and status == -signal.SIGKILL:
            raise subprocess.TimeoutExpired("forked", timeout, printed)
        timer.cancel()
        return printed, None


def _begin(words, environment, folder, writer, processes, restarts):
    import deepspeed  # imported already, as all of _IMPORTS

    os.setsid()
    os.dup2(writer.fileno(), 1)
    os.dup2(writer.fileno(), 2)
    writer.close()
    sys.stdout, sys.stderr = (os.fdopen(os.dup(number), "w", buffering=1) for number in (1, 2))
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    # DeepSpeed would compile collectives of its own for CPUs, a minute on two processors; it does without.
    deepspeed.ops.__compatible_ops__ = {}
    if not processes:
        _run(words)
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(1, 1, processes, rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0", start_method="fork")
    config.max_restarts, config.monitor_interval = restarts, 0.1
    elastic_launch(config, _run)(words)


def _run(words):
    """Runs a module or a file as python does, to its ``sys.exit``."""
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
    sys.exit(0)
