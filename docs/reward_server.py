"""A reward server for the term `remote`: python docs/reward_server.py 8080. It rewards red images."""

import base64
import io
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image


def score(image: Image.Image, caption: str) -> float:
    """Put your own model here."""
    red, green, blue = np.asarray(image.convert("RGB"), dtype=float).mean(axis=(0, 1)) / 255
    return red - (green + blue) / 2


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        images = [Image.open(io.BytesIO(base64.b64decode(png))) for png in asked["images"]]
        scores = [score(image, caption) for image, caption in zip(images, asked["captions"], strict=True)]
        answer = {"scores": scores, "parts": {"width": [image.width for image in images]}}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())


if __name__ == "__main__":
    ThreadingHTTPServer(("localhost", int(sys.argv[1])), Handler).serve_forever()
