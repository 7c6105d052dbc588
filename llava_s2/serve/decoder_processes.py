"""Decoding strangers' images in processes of their own, each bounded in memory and time, and ended when it goes over.

A file that would take long holds up neither the server, which it cannot reach, nor the other images: what is not
decoded in a moment starts anew among the few slow ones, at a lower priority.
"""

import contextlib
import json
import os
import queue
import re
import resource
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import BinaryIO

from PIL import Image

from llava_s2.data.image_decoding import DecodedImage, decode_image
from llava_s2.errors import InputError

MAX_BYTES = 20 << 20
MAX_SIDE = 4096
"""Larger images are reduced to this side; the models' own input is smaller by far."""

_MEMORY = 1536 << 20  # address space of a process; a PNG of 108 million pixels needs two thirds of it
_KEPT_MEMORY = 200 << 20  # a process that has used more is replaced
_QUICK_SECONDS, _SLOW_SECONDS = 0.6, 8.0  # of processor time for one image
_HEAD = struct.Struct(">Qd")


class DecoderProcesses:
    """A pool of decoders, started when first needed. Safe to use from several threads.

    Args:
        quick: images that are decoded at the same time.
        slow: of those that take longer than a moment, beside the others.
    """

    def __init__(self, quick: int = 2, slow: int = 1) -> None:
        self._lanes = [_Lane(quick, 0, _QUICK_SECONDS), _Lane(slow, 10, _SLOW_SECONDS)]

    def decode(self, data: bytes, name: str = "image") -> DecodedImage:
        """Decodes as `decode_image` does, reducing to ``MAX_SIDE``.

        Args:
            data: a file's bytes, at most ``MAX_BYTES``.
            name: what to call it in an error; its last part, on one line.

        Raises:
            InputError: see `decode_image`; or it is too large, or takes too long.
        """
        name = _safe_name(name)
        if len(data) > MAX_BYTES:
            raise InputError(f"{name}: is larger than {MAX_BYTES >> 20} MB; shrink it")
        for lane in self._lanes:
            with contextlib.suppress(TimeoutError), lane.process() as process:
                return process.decode(data, name, lane.seconds)
        raise InputError(f"{name}: takes too long to decode; save it anew")

    def close(self) -> None:
        """Ends the processes."""
        for lane in self._lanes:
            lane.close()


class _Lane:
    """Processes that images take turns in."""

    def __init__(self, count: int, niceness: int, seconds: float) -> None:
        self.seconds, self._niceness, self._count = seconds, niceness, count
        self._idle: queue.LifoQueue[_Process | None] = queue.LifoQueue()
        for _ in range(count):
            self._idle.put(None)

    @contextlib.contextmanager
    def process(self) -> Iterator["_Process"]:
        process = self._idle.get() or _Process(self._niceness)
        try:
            yield process
        finally:
            # The next one starts while nobody waits for it.
            self._idle.put(process if process.is_usable() else _Process(self._niceness))

    def close(self) -> None:
        for _ in range(self._count):
            if process := self._idle.get():
                process.end()
            self._idle.put(None)


class _Process:
    def __init__(self, niceness: int) -> None:
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "llava_s2.serve.decoder_processes", str(niceness)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C is the server's
        )
        self._spent = False

    def is_usable(self) -> bool:
        if self._spent or self._popen.poll() is not None:
            self.end()
            return False
        return True

    def end(self) -> None:
        self._popen.kill()
        self._popen.wait()
        for pipe in (self._popen.stdin, self._popen.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def decode(self, data: bytes, name: str, seconds: float) -> DecodedImage:
        """Raises TimeoutError where it took more than ``seconds`` of processor time, and InputError."""
        # Something that waits without working is no image's fault; it ends all the same.
        watchdog = threading.Timer(60 + 10 * seconds, self._popen.kill)
        watchdog.start()
        assert self._popen.stdin is not None and self._popen.stdout is not None
        try:
            self._popen.stdin.write(_HEAD.pack(len(data), seconds) + data)
            self._popen.stdin.flush()
            answer = json.loads(self._popen.stdout.readline())
            pixels = self._popen.stdout.read(answer["bytes"])
        except (OSError, json.JSONDecodeError):  # it died
            status = self._popen.wait()
            if status in (-signal.SIGPROF, -signal.SIGKILL):
                raise TimeoutError from None
            raise InputError(f"{name}: truncated or damaged image; save it anew") from None
        finally:
            watchdog.cancel()
        self._spent = answer["spent"]
        if "error" in answer:
            raise InputError(f"{name}: {answer['error']}")
        return DecodedImage(Image.frombytes("RGB", tuple(answer["size"]), pixels), tuple(answer["conversions"]))


def _safe_name(name: str) -> str:
    """The last part of a file's name, short and on one line."""
    last = re.split(r"[/\\]", name)[-1]
    return "".join(letter if letter.isprintable() else "?" for letter in last)[:80] or "image"


def _serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """The process's own part: decodes one image after the other."""
    while head := requests.read(_HEAD.size):
        length, seconds = _HEAD.unpack(head)
        data = requests.read(length)
        pixels = b""
        signal.setitimer(signal.ITIMER_PROF, seconds)  # SIGPROF, of which nobody takes care, ends the process
        try:
            decoded = decode_image(data, name="", max_side=MAX_SIDE)
            pixels = decoded.image.tobytes()
            answer: dict[str, object] = {"size": decoded.image.size, "conversions": decoded.conversions}
        except InputError as error:
            answer = {"error": str(error).removeprefix(": ")}
        signal.setitimer(signal.ITIMER_PROF, 0)
        answer["bytes"] = len(pixels)
        answer["spent"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > _KEPT_MEMORY
        answers.write(json.dumps(answer).encode() + b"\n" + pixels)
        answers.flush()


if __name__ == "__main__":
    os.nice(int(sys.argv[1]))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _serve(sys.stdin.buffer, sys.stdout.buffer)
