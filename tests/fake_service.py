"""A server in the test's own process, which answers as a test says and keeps what it was asked."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FakeService(ThreadingHTTPServer):
    """Answers POSTs.

    Args:
        answer: `(content, number of the request from 0) -> answer`; an answer is a JSON-able object, text
            that is sent as it is, or `(status, object or text, headers)`.
    """

    def __init__(self, answer: Callable):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer, self.lock = answer, threading.Lock()
        self.asked: list[dict] = []
        self.headers: list[dict[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            number = len(self.server.asked)
            self.server.asked.append(content)
            self.server.headers.append({name.title(): value for name, value in self.headers.items()})
        answer = self.server.answer(content, number)
        status, body, headers = answer if isinstance(answer, tuple) else (200, answer, {})
        is_text = isinstance(body, str)
        kind = "text/plain" if is_text else "application/json"
        sent = (body if is_text else json.dumps(body)).encode()
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(sent)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *_):
        pass


@contextmanager
def service(answer: Callable) -> Iterator[FakeService]:
    """A running service."""
    server = FakeService(answer)
    server.handle_error = lambda *_: None  # a client that gave up waiting
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def chat(text: str) -> dict:
    """What an OpenAI-compatible endpoint answers."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}


def question_in(content: dict) -> str:
    """The question of a request to a chat endpoint."""
    return next(part["text"] for part in content["messages"][0]["content"] if part["type"] == "text")


def png_in(content: dict) -> str:
    """The image of such a request, PNG in base64."""
    (image,) = (part for part in content["messages"][0]["content"] if part["type"] == "image_url")
    return image["image_url"]["url"].removeprefix("data:image/png;base64,")
