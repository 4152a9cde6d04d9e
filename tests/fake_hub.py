"""A Hugging Face hub on this machine, spoken to by the real client: one data set, and ways to misbehave."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlparse


class FakeHub:
    """Serves the files of a folder as a data set.

    Args:
        folder: the data set's files.
        repo: its name.
        token: without which it is refused; None lets everyone in.

    Attributes:
        stall_on: requests whose path contains this text get no answer until `close`.
        trickle: send one byte of a file every 50 ms.
        gated: list the data set to everybody, but refuse its files and say so when asked for access.
        renamed_from: an old name, from which the hub forwards to the data set.
        disabled: refuse everything, as the hub does with data sets that it has taken down.
        requests: (path, bytes sent) of every request.
    """

    def __init__(self, folder: Path, repo: str, token: str | None = None):
        self.folder, self.repo, self.token = folder, repo, token
        self.stall_on: str | None = None
        self.trickle = self.gated = self.disabled = False
        self.renamed_from: str | None = None
        self.requests: list[tuple[str, int]] = []
        self.closed = threading.Event()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                hub.answer(self)

            def do_POST(self):
                self.rfile.read(int(self.headers.get("content-length", 0)))
                hub.answer(self)

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = False  # so that closing waits for the last answers
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        """Ends stalling and trickling: an abandoned request gets its answer and is not tried again."""
        self.closed.set()
        self.server.shutdown()
        self.server.server_close()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        url = urlparse(handler.path)
        if self.stall_on is not None and self.stall_on in url.path:
            self.closed.wait(60)
            self.send(handler, 404, b"{}", {"X-Error-Code": "EntryNotFound"})
            return
        if self.token is not None and handler.headers.get("authorization") != f"Bearer {self.token}":
            self.send(handler, 401, b"{}", {"X-Error-Message": "Access is restricted: gated data set"})
            return
        if self.disabled:
            self.send(handler, 403, b"{}", {"X-Error-Message": "Access to this resource is disabled."})
            return
        if self.renamed_from is not None and self.renamed_from in url.path:
            there = handler.path.replace(self.renamed_from, self.repo)
            self.send(handler, 307, b"", {"Location": there})
            return
        if self.gated and ("/resolve/" in url.path or url.path.endswith("/auth-check")):
            self.send(handler, 403, b"{}", {"X-Error-Code": "GatedRepo"})
            return
        resolve = f"/datasets/{self.repo}/resolve/main/"
        if url.path.startswith(resolve):
            self.send_range(handler, self.folder / url.path.removeprefix(resolve))
        elif url.path.startswith(f"/api/datasets/{self.repo}/tree/main"):
            self.send_json(handler, self.listing("recursive=true" in url.query.lower()))
        elif "/revision/" in url.path and not url.path.endswith("/revision/main"):
            self.send(handler, 404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif url.path.startswith(f"/api/datasets/{self.repo}"):
            self.send_json(handler, {"id": self.repo, "sha": "a" * 40, "tags": [], "gated": self.gated})
        else:
            self.send(handler, 404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def listing(self, recursive: bool) -> list[dict]:
        paths = self.folder.rglob("*") if recursive else self.folder.glob("*")
        return [
            {
                "type": "file" if path.is_file() else "directory",
                "path": path.relative_to(self.folder).as_posix(),
                "size": path.stat().st_size if path.is_file() else 0,
                "oid": "b" * 40,
            }
            for path in sorted(paths)
        ]

    def send_range(self, handler: BaseHTTPRequestHandler, path: Path) -> None:
        if not path.is_file():
            self.send(handler, 404, b"{}", {"X-Error-Code": "EntryNotFound"})
            return
        content = path.read_bytes()
        first, _, last = handler.headers["range"].removeprefix("bytes=").partition("-")
        part = content[int(first) : int(last) + 1]
        self.send(handler, 206, part, {"Content-Range": f"bytes {first}-{last}/{len(content)}"})

    def send_json(self, handler: BaseHTTPRequestHandler, value) -> None:
        self.send(handler, 200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send(self, handler: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict) -> None:
        self.requests.append((handler.path, len(body)))
        handler.send_response(status)
        for name, value in {**headers, "Content-Length": len(body)}.items():
            handler.send_header(name, str(value))
        handler.end_headers()
        while self.trickle and status == 206 and body and not self.closed.is_set():
            handler.wfile.write(body[:1])
            body = body[1:]
            time.sleep(0.05)
        handler.wfile.write(body)
