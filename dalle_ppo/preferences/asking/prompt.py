"""The question put to a model: a text that one can edit, and the pictures."""

import base64
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dalle_ppo.base.one_line import one_line
from dalle_ppo.preferences.answer import PictureSet
from dalle_ppo.preferences.store import Store

DEFAULT = Path(__file__).with_name("prompt.txt")
BLANKS = ("{caption}", "{count}")


def read_prompt(store: Store, given: Path | None) -> str:
    """The text of the question: the file given, or `prompt.txt` of the store, which is made if it is missing.

    Raises:
        ValueError: it cannot be read, or lacks a blank.
    """
    path = given or store.folder / "prompt.txt"
    if given is None:
        store.keep(path, DEFAULT.read_bytes())
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"--prompt {path} cannot be read as text ({one_line(error)}); name a text file"
        ) from None
    missing = [blank for blank in BLANKS if blank not in text]
    if missing:
        raise ValueError(f"--prompt {path} lacks {' and '.join(missing)}; write each where its value belongs")
    return text


def orders(picture_set: PictureSet) -> list[tuple[str, ...]]:
    """Two orders of a set's pictures: drawn by the set's id, and that order backwards.

    A model that likes a place more than a picture then contradicts itself.
    """
    first = list(picture_set.images)
    random.Random(picture_set.id).shuffle(first)
    return [tuple(first), tuple(reversed(first))]


def question(text: str, caption: str, images: Sequence[str], store: Store) -> list[dict[str, Any]]:
    """The content of a chat message: the text, and each picture after its number.

    Source: "Images and vision", https://platform.openai.com/docs/guides/images-vision

    Raises:
        OSError: a picture's file is gone.
    """
    filled = text.replace("{count}", str(len(images))).replace("{caption}", caption)
    content: list[dict[str, Any]] = [{"type": "text", "text": filled}]
    for number, key in enumerate(images, start=1):
        data = base64.b64encode(store.image_path(key).read_bytes()).decode()
        content.append({"type": "text", "text": f"Picture {number}:"})
        content.append({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}})
    return content
