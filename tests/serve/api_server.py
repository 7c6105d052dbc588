"""A served model for the tests: the command in a process of its own, or the app in a thread."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

GOLDEN = Path(__file__).parents[1] / "golden/llava_tiny"
KEY = "a-key-for-the-tests-only"
NAME = "tiny"


class Command:
    """``llava-s2 serve`` on the tiny checkpoint, on a free port."""

    def __init__(self, folder: Path, *flags: str) -> None:
        keys = folder / "keys"
        keys.write_text(f"# tests\n{KEY}\n")
        command = [sys.executable, "-m", "llava_s2.cli", "serve", "--port", "0", "--model-name", NAME]
        command += ["--model", str(GOLDEN / "llava-tiny-s2"), "--vision_tower", str(GOLDEN / "clip-tiny")]
        command += ["--dtype", "float32", "--api-key-file", str(keys), *flags]
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, stderr=log, stdout=log, env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
            )
        self.url = ""
        while not self.url:
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)
            if found := re.search(r"running on (http://\S+)", self.log.read_text()):
                self.url = found[1]

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        finally:
            self.process.kill()


@contextlib.contextmanager
def in_thread(service, keys=()) -> Iterator[str]:
    """Serves until the block ends. Gives the URL."""
    from llava_s2.serve.api.app import build_app
    from llava_s2.serve.api.server import make_server

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = make_server(
        build_app(service, keys), "127.0.0.1", port, begin_drain=lambda: None, is_idle=lambda: service.under_way == 0
    )
    service.engine.start()
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
        service.engine.stop()
