"""A chat-completions server on loopback that fails as real ones do, on demand."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class JudgeServer:
    """What the server is asked, and how it answers.

    Attributes:
        reply: gives the text of an answer from the request's body.
        finish: gives an answer's reason of ending from the request's body.
        faults: of the coming requests, each used once: ``(status, headers, body)``, or "hang", or "cut".
        refusal: what a request with this body always fails with, as one of ``faults``; None where it does not.
        requests: bodies and ``Authorization`` of every request, in order.
        most: the largest number of requests in work at once.
    """

    def __init__(self, reply: Callable[[dict[str, Any]], str | None]) -> None:
        self.reply = reply
        self.finish: Callable[[dict[str, Any]], str] = lambda body: "stop"
        self.faults: list[Any] = []
        self.refusal: Callable[[dict[str, Any]], Any] = lambda body: None
        self.requests: list[tuple[dict[str, Any], str | None, float]] = []
        self.most = self._now = 0
        self._lock = threading.Lock()
        self._end = threading.Event()
        self.url = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Handles one request."""
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
            self.requests.append((body, handler.headers.get("Authorization"), time.monotonic()))
            fault = self.faults.pop(0) if self.faults else self.refusal(body)
        time.sleep(0.005)
        status, headers, text = 200, {}, self._completion(body)
        if fault == "hang":
            self._end.wait(5)
        elif fault == "cut":
            text = text[:20]
        elif fault is not None:
            status, headers, text = fault
        with self._lock:
            self._now -= 1
        handler.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(text.encode())

    def _completion(self, body: dict[str, Any]) -> str:
        usage = {"prompt_tokens": 700, "completion_tokens": 2, "total_tokens": 702}
        choice = {"message": {"role": "assistant", "content": self.reply(body)}, "finish_reason": self.finish(body)}
        return json.dumps({"model": "judge-0613", "choices": [choice], "usage": usage})

    @contextmanager
    def running(self) -> Iterator["JudgeServer"]:
        """The server, on a free port."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                with suppress(OSError):  # the client gives up on a request that hangs
                    outer.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            server.daemon_threads = True
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            self.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
            try:
                yield self
            finally:
                self._end.set()
                server.shutdown()
                thread.join()
