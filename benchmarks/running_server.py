"""``llava-s2 serve`` as the benchmarks start it: on a free port of the loopback, and stopped at the end."""

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil


@contextlib.contextmanager
def running_server(flags: Sequence[str] = ()) -> Iterator[tuple[str, psutil.Popen]]:
    """Gives its URL and its process. Ends it, if it has not ended by itself."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("w") as output:
            command = [sys.executable, "-m", "llava_s2.cli", "serve", "--port", "0", *flags]
            process = psutil.Popen(command, stdout=output, stderr=output, env={"HF_HUB_OFFLINE": "1", **os.environ})
        try:
            while not (found := re.search(r"running on (http://\S+)", log.read_text())):
                if process.poll() is not None:
                    raise SystemExit(log.read_text())
                time.sleep(0.2)
            yield found[1], process
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def megabytes(process: psutil.Popen) -> int:
    """Resident memory of a process."""
    return process.memory_info().rss >> 20
