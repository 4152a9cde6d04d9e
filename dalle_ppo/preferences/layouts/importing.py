"""Reads published preference data into a store."""

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from PIL import Image as Picture
from tqdm import tqdm

from dalle_ppo.base.one_line import one_line
from dalle_ppo.preferences.layouts.rows import NoAnswer, Row, read_rows
from dalle_ppo.preferences.store import Answer, Store


@dataclass(frozen=True)
class Bringing:
    """How files are read.

    Args:
        layout: "pickapic", "hpdv2" or "imagereward".
        images: folder that paths start from; None: that of the file.
        limit: number of rows; None reads all.
        size: longest side of a picture in the store, in pixels.
    """

    layout: str
    images: Path | None = None
    limit: int | None = None
    size: int = 512


@dataclass
class Brought:
    """What an import has done.

    Args:
        answers: added.
        known: left out, because they are in the store.
        damaged: rows without a usable answer or picture.
        first_fault: what was wrong with the first of them.
    """

    answers: int = 0
    known: int = 0
    damaged: int = 0
    first_fault: str = ""

    def lines(self, folder: Path) -> list[str]:
        """For people."""
        lines = [f"{self.answers} answers added to {folder}"]
        if self.known:
            lines.append(f"{self.known} answers were there already")
        if self.damaged:
            lines.append(f"{self.damaged} rows left out; the first: {self.first_fault}")
        return lines


def import_files(paths: Sequence[Path], store: Store, how: Bringing) -> Brought:
    """Adds the answers of some files; those that are in the store already are not added again.

    Raises:
        ValueError: a file is missing or in another layout, or not one answer can be used.
    """
    known = {answer.set_id + answer.rater for answer in store.answers(undone=True)}
    brought = Brought()
    rows = islice(_all_rows(paths, how), how.limit)
    for path, row in tqdm(rows, desc="import", unit="row", dynamic_ncols=True):
        try:
            if isinstance(row, NoAnswer):
                raise row
            answer = _answer(row, path, store, how, known)
        except NoAnswer as error:
            brought.damaged += 1
            brought.first_fault = brought.first_fault or f"{path.name}: {error}"
            continue
        if answer is None:
            brought.known += 1
            continue
        store.append(answer)
        known.add(answer.set_id + answer.rater)
        brought.answers += 1
    if not brought.answers and not brought.known:
        raise ValueError(
            f"no answer of {paths[0]} can be used ({brought.first_fault or 'it has no rows'}); check the "
            "layout, and --images, the folder that paths of pictures start from"
        )
    return brought


def _all_rows(paths: Sequence[Path], how: Bringing) -> Iterator[tuple[Path, Row | NoAnswer]]:
    for path in paths:
        for row in read_rows(path, how.layout):
            yield path, row


def _answer(row: Row, path: Path, store: Store, how: Bringing, known: set[str]) -> Answer | None:
    """The answer to add; None for one that is known."""
    set_id = hashlib.sha256(f"{how.layout}|{row.name}|{row.caption}".encode()).hexdigest()[:16]
    if set_id + row.rater in known:
        return None
    files = [_read(picture, how.images or path.parent) for picture in row.pictures]
    pictures = [_png(data, how.size) for data in files]
    keys = tuple(store.add_image(png, row.caption, side="imported") for png in pictures)
    if len(set(keys)) < len(keys):
        raise NoAnswer("two of its pictures are the same")
    return Answer(row.caption, keys, "ranking", row.rater, "imported", set_id, ranks=row.ranks)


def _read(picture: bytes | str, folder: Path) -> bytes:
    if isinstance(picture, bytes):
        return picture
    if "\0" in picture:
        raise NoAnswer(f"{picture!r} is not a valid path")
    path = (folder / picture).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise NoAnswer(f"the path {picture} leads out of {folder}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise NoAnswer(f"the picture {path} cannot be read ({error.strerror})") from None


def _png(data: bytes, size: int) -> bytes:
    """A picture of any format as PNG, at most `size` pixels wide and high."""
    try:
        with Picture.open(io.BytesIO(data)) as opened:
            picture = opened.convert("RGB")
    except (OSError, SyntaxError, ValueError, Picture.DecompressionBombError) as error:
        raise NoAnswer(f"a picture cannot be read ({one_line(error)})") from None
    picture.thumbnail((size, size), Picture.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    return buffer.getvalue()
