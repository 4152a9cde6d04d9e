"""What terms that ask a service share: images as PNG, requests side by side, and keys that stay secret."""

import base64
import io
import json
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from PIL import Image
from torch import Tensor

Item, Answer = TypeVar("Item"), TypeVar("Answer")


def to_pil(images: Tensor) -> list[Image.Image]:
    """Images [B, 3, H, W] in 0..1 as Pillow's, rounded to 8 bits."""
    pixels = (images.detach().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(image) for image in pixels]


def png_text(image: Image.Image) -> str:
    """An image as PNG in base64."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def in_parallel(function: Callable[[Item], Answer], items: Iterable[Item], workers: int) -> list[Answer]:
    """`function` of each item, in order; after an error, no further item is begun."""
    failed = threading.Event()

    def unless_failed(item: Item) -> Answer | None:
        if failed.is_set():
            return None  # nobody sees it: the error is raised
        try:
            return function(item)
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(unless_failed, items))


def api_key(variable: str | None) -> str | None:
    """The key in an environment variable; None if it is unset or empty."""
    return (os.environ.get(variable, "").strip() or None) if variable else None


def shown(text: object, key: str | None = None, length: int = 200) -> str:
    """Text of a service for an error: one line, short, and without the key if it is quoted there."""
    line = masked(" ".join(str(text).split()), key)
    return line if len(line) <= length else line[:length] + " ..."


def masked(text: str, key: str | None) -> str:
    """The text with *** in the key's place, also where it is quoted as Python or JSON writes it."""
    for written in {key, repr(key)[1:-1], json.dumps(key)[1:-1]} if key else ():
        text = text.replace(written, "***")
    return text
