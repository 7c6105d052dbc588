"""Decoding strangers' images in processes of their own, each bounded in memory and time, and ended when it goes over.

A file that would take long holds up neither the server, which it cannot reach, nor the other images: what is not
decoded in a moment starts anew in another lane, with more time and a lower priority.
"""

import contextlib
import json
import os
import queue
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
from dataclasses import dataclass
from multiprocessing.connection import Connection

from PIL import Image

from llava_s2.data.image_decoding import DecodedImage, decode_image
from llava_s2.errors import InputError

MAX_BYTES = 20 << 20
MAX_SIDE = 4096
"""Larger images are reduced to this side; the models' own input is smaller by far."""

_MEMORY = 1536 << 20  # address space of a process; a PNG of 108 million pixels needs two thirds of it
_KEPT_MEMORY = 200 << 20  # a process that has used more is replaced
_WAIT_SECONDS = 120.0  # something that waits without working is no image's fault; it ends all the same
_TIME = struct.Struct(">d")


@dataclass(frozen=True)
class Lane:
    """Processes that images take turns in: how many, their niceness, and seconds of processor time for one image."""

    count: int
    niceness: int
    seconds: float


LANES = (Lane(2, 0, 0.1), Lane(1, 5, 0.8), Lane(1, 10, 8.0))
"""An image of some megapixels stays in the first, the largest that are opened need the last."""


class TooSlowError(Exception):
    """An image needs more processor time than its lane gives."""


class DecoderProcesses:
    """A pool of decoders, started when first needed. Safe to use from several threads.

    Each is a copy of one process that has imported everything, so that ending one costs little.
    """

    def __init__(self) -> None:
        self._origin: socket.socket | None = None
        self._original: subprocess.Popen | None = None
        self._one_at_a_time = threading.Lock()
        self._idle: list[queue.LifoQueue[_Process | None]] = [queue.LifoQueue() for _ in LANES]
        for idle, lane in zip(self._idle, LANES, strict=True):
            for _ in range(lane.count):
                idle.put(None)

    def decode(self, data: bytes, name: str = "image") -> DecodedImage:
        """Decodes as `decode_image` does, reducing to ``MAX_SIDE``, in one lane after the other.

        Args:
            data: a file's bytes, at most ``MAX_BYTES``.
            name: what to call it in an error; its last part, on one line.

        Raises:
            InputError: see `decode_image`; or it is too large, or takes too long.
        """
        for lane in range(len(LANES)):
            with contextlib.suppress(TooSlowError):
                return self.decode_in(lane, data, name)
        raise InputError(f"{_safe_name(name)}: takes too long to decode, or is damaged; save it anew")

    def decode_in(self, lane: int, data: bytes, name: str = "image", seconds: float | None = None) -> DecodedImage:
        """Decodes in one lane, in ``seconds`` of processor time if that is less than the lane gives.

        Raises:
            InputError: see `decode_image`; or it is too large.
            TooSlowError: it takes longer.
        """
        name = _safe_name(name)
        if len(data) > MAX_BYTES:
            raise InputError(f"{name}: is larger than {MAX_BYTES >> 20} MB; shrink it")
        process = self._idle[lane].get() or self._start(lane)
        try:
            return process.decode(data, name, LANES[lane].seconds if seconds is None else seconds)
        finally:
            # The next one starts while nobody waits for it.
            self._idle[lane].put(process if process.is_usable() else self._start(lane))

    def close(self) -> None:
        """Ends the processes."""
        for idle, lane in zip(self._idle, LANES, strict=True):
            for _ in range(lane.count):
                if process := idle.get():
                    process.end()
                idle.put(None)
        if self._origin is not None and self._original is not None:
            self._origin.close()
            self._original.wait()

    def _start(self, lane: int) -> "_Process":
        with self._one_at_a_time:
            if self._origin is None:
                self._origin, theirs = socket.socketpair()
                with theirs:
                    self._original = subprocess.Popen(
                        [sys.executable, "-m", __name__],
                        stdin=theirs.fileno(),
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.DEVNULL,
                        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                        start_new_session=True,  # Ctrl-C is the server's
                    )
            ours, theirs = socket.socketpair()
            with theirs:
                socket.send_fds(self._origin, [bytes([LANES[lane].niceness])], [theirs.fileno()])
        return _Process(Connection(ours.detach()))


class _Process:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._usable = True

    def is_usable(self) -> bool:
        if not self._usable:
            self.end()
        return self._usable

    def end(self) -> None:
        self._connection.close()  # which it takes as its end when it has nothing else to do

    def decode(self, data: bytes, name: str, seconds: float) -> DecodedImage:
        """Raises TooSlowError where it took more than ``seconds`` of processor time, and InputError."""
        try:
            self._connection.send_bytes(_TIME.pack(seconds) + data)
            if not self._connection.poll(_WAIT_SECONDS):
                raise TimeoutError
            answer = json.loads(self._connection.recv_bytes())  # JSON: what a file has taken over may answer anything
            pixels = self._connection.recv_bytes()
        except (EOFError, OSError, ValueError):  # it died, of its time, or of the file
            self._usable = False
            raise TooSlowError from None
        self._usable = not answer["spent"]
        if "error" in answer:
            raise InputError(f"{name}: {answer['error']}")
        return DecodedImage(Image.frombytes("RGB", tuple(answer["size"]), pixels), tuple(answer["conversions"]))


def _safe_name(name: str) -> str:
    """The last part of a file's name, short and on one line."""
    last = re.split(r"[/\\]", name)[-1]
    return "".join(letter if letter.isprintable() else "?" for letter in last)[:80] or "image"


def _originate() -> None:
    """Makes copies of this process, each of which decodes what comes over a socket of its own."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how they ended
    Image.init()
    with socket.socket(fileno=sys.stdin.fileno()) as origin:
        while True:
            niceness, sockets, _, _ = socket.recv_fds(origin, 1, 1)
            if not sockets:  # the server has ended
                return
            if os.fork() == 0:
                origin.close()
                _serve(Connection(sockets[0]), niceness[0])
                return
            os.close(sockets[0])


def _serve(requests: Connection, niceness: int) -> None:
    """The process's own part: decodes one image after the other."""
    os.nice(niceness)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(EOFError, OSError):  # the server has ended
        while True:
            request = requests.recv_bytes()
            pixels = b""
            # SIGPROF, of which nobody takes care, ends the process.
            signal.setitimer(signal.ITIMER_PROF, *_TIME.unpack(request[: _TIME.size]))
            try:
                decoded = decode_image(request[_TIME.size :], name="", max_side=MAX_SIDE)
                pixels = decoded.image.tobytes()
                answer: dict[str, object] = {"size": decoded.image.size, "conversions": decoded.conversions}
            except InputError as error:
                answer = {"error": str(error).removeprefix(": ")}
            signal.setitimer(signal.ITIMER_PROF, 0)
            answer["spent"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > _KEPT_MEMORY
            requests.send_bytes(json.dumps(answer).encode())
            requests.send_bytes(pixels)


if __name__ == "__main__":
    _originate()
