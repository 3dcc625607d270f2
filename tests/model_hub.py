"""A model hub on a real socket that has one model, as far as the hub's own client asks for it."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "1" * 40


@dataclass
class ModelHub:
    url: str
    fetched: list[str] = field(default_factory=list)
    """Names of files that were sent, in order."""
    broken: set[str] = field(default_factory=set)
    """Names of files that the hub does not have, though it lists them."""


@contextmanager
def model_hub(name: str, folder: Path) -> Iterator[ModelHub]:
    """Serve ``folder`` as the model ``name``; other models are not found."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            file = folder / path.rpartition("/")[2]
            if path.startswith(f"/api/models/{name}/tree/"):
                tree = [
                    {
                        "type": "file",
                        "path": one.name,
                        "size": one.stat().st_size,
                        "oid": hashlib.sha1(one.read_bytes()).hexdigest(),
                    }
                    for one in sorted(folder.iterdir())
                ]
                self.answer(200, json.dumps(tree).encode())
            elif path.startswith(f"/api/models/{name}"):
                files = [{"rfilename": one.name} for one in sorted(folder.iterdir())]
                body = json.dumps({"id": name, "sha": COMMIT, "siblings": files}).encode()
                self.answer(200, body)
            elif f"/{name}/resolve/" in path and file.is_file() and file.name not in hub.broken:
                if self.command == "GET":
                    hub.fetched.append(file.name)
                self.answer(200, file.read_bytes())
            else:
                self.answer(404, b"")

        def answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = ModelHub(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
