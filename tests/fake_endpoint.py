"""A small OpenAI-compatible server in the test's own process; it sees the pictures, and can misbehave."""

import base64
import io
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image


def red_first(redness):
    """An honest judge: the reddest picture is best; the least red one is harmful."""
    order = sorted(range(len(redness)), key=lambda place: -redness[place])
    ranks = [order.index(place) + 1 for place in range(len(redness))]
    return json.dumps({"ranks": ranks, "harm": [float(rank == max(ranks)) for rank in ranks]})


class FakeEndpoint:
    """Serves while it is entered.

    Args:
        judge: returns the text of a reply from the mean red of each picture, in 0..255.
        script: what happens to the first requests, one entry each: a status (with its body), ("sleep",
            seconds), ("raw", content type, bytes), or None for a normal reply.
    """

    def __init__(self, judge=red_first, script=()):
        self.judge, self.script = judge, list(script)
        self.requests: list[dict] = []  # what came: model, text, redness, headers
        self.usage = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}

    def __enter__(self):
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                fake.answer(self, body)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def answer(self, handler, body):
        content = body["messages"][0]["content"]
        redness = [red_of(part["image_url"]["url"]) for part in content if part["type"] == "image_url"]
        self.requests.append(
            {
                "model": body["model"],
                "text": content[0]["text"],
                "redness": redness,
                "key": handler.headers.get("Authorization"),
                "path": handler.path,
            }
        )
        step = self.script.pop(0) if self.script else None
        if step is None:
            self.reply(handler, 200, json.dumps(self.completion(body, redness)).encode())
        elif step[0] == "sleep":
            time.sleep(step[1])
            handler.close_connection = True
        elif step[0] == "raw":
            self.reply(handler, 200, step[2], step[1])
        else:
            status, message, *headers = step
            error = message if isinstance(message, dict) else {"message": message, "code": None}
            data = json.dumps({"error": error}).encode()
            self.reply(handler, status, data, "application/json", *headers)

    def completion(self, body, redness):
        message = {"role": "assistant", "content": self.judge(redness)}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        return {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": choices,
            "usage": self.usage,
        }

    def reply(self, handler, status, data, kind="application/json", headers=()):
        handler.send_response(status)
        for name, value in dict(headers).items():
            handler.send_header(name, value)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)


def red_of(url):
    data = base64.b64decode(url.removeprefix("data:image/png;base64,"))
    return float(np.asarray(Image.open(io.BytesIO(data)))[..., 0].mean())
