"""A served model for the tests: the command in a process of its own, or the app in a thread."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
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
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        )
        self.lines: list[str] = []
        started = threading.Event()

        def read() -> None:
            assert self.process.stdout is not None
            for line in self.process.stdout:
                self.lines.append(line)
                if "running on" in line:
                    started.set()
            started.set()

        threading.Thread(target=read, daemon=True).start()
        assert started.wait(300)
        found = re.search(r"running on (http://\S+)", self.log)
        assert found, self.log
        self.url = found[1]

    @property
    def log(self) -> str:
        return "".join(self.lines)

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        finally:
            self.process.kill()


@contextlib.contextmanager
def in_thread(service, keys=()) -> Iterator[str]:
    """Serves until the block ends. Gives the URL."""
    from llava_s2.serve.api.api_server import make_server
    from llava_s2.serve.api.app import build_app

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = make_server(
        build_app(service, keys),
        "127.0.0.1",
        port,
        begin_drain=lambda: None,
        give_up=lambda: None,
        is_idle=lambda: service.under_way == 0,
    )
    service.engine.start()
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            thread.join(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
        service.close()
