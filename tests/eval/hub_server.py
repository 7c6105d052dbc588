"""A hub on this machine: the routes of huggingface.co by which a data set is found, listed and fetched."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote

REVISION = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub(name: str, folder: Path) -> Iterator[str]:
    """Serves a folder as the data set ``name``; yields the hub's address."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = unquote(self.path.partition("?")[0])
            resolve = f"/datasets/{name}/resolve/{REVISION}/"
            if path in (f"/api/datasets/{name}", f"/api/datasets/{name}/revision/{REVISION}"):
                siblings = [{"rfilename": file} for file in files]
                self.send({"id": name, "sha": REVISION, "siblings": siblings})
            elif path == f"/api/datasets/{name}/tree/{REVISION}":
                self.send([{"type": "file", "path": file, "size": at.stat().st_size, "oid": "0" * 40}
                           for file, at in files.items()])  # fmt: skip
            elif path.startswith(resolve) and path.removeprefix(resolve) in files:
                self.send(files[path.removeprefix(resolve)].read_bytes())
            else:
                self.send({"error": "not found"}, 404)

        do_HEAD = do_GET

        def send(self, body: object, status: int = 200) -> None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("X-Repo-Commit", REVISION)
            self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
