"""What a row of the table of bad inputs is, and small builders of damaged files."""

import json
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """A bad input, and what the one line about it must contain.

    Args:
        name: shown by pytest.
        run: gets an empty folder, writes its input there and uses it; must raise.
        words: all stand in the message.
    """

    name: str
    run: Callable[[Path], object]
    words: tuple[str, ...]


def cases(kind: str, rows: list[tuple[str, Callable[[Path], object], tuple[str, ...]]]) -> list[Case]:
    """Rows of one kind of input."""
    return [Case(f"{kind}: {name}", run, words) for name, run, words in rows]


def raw_safetensors(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    """A safetensors file with any header, right or wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def raw_zip(path: Path, entries: dict[str, bytes], compressed: bool = False) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def text_file(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path
