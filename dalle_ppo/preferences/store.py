"""The store of answers and pictures: files that only grow, and that several processes may write at once."""

import hashlib
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from dalle_ppo.base.append import Home, RowFile
from dalle_ppo.base.atomic import atomic_write
from dalle_ppo.preferences.answer import Answer, Image

__all__ = ["Answer", "Image", "Report", "Store", "find_store", "pairs"]

PNG_START = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Report:
    """What a store holds, and what is wrong with it.

    Args:
        kinds: number of answers of each kind, without those taken back.
        raters: number of answers of each rater.
        undone: answers taken back.
        images: pictures known.
        missing: pictures that an answer names and whose file is gone.
        torn: rows left unfinished by a process that was killed, or damaged.
        unreadable: whole rows that break the rules, such as those of a newer version.
        contradictions: pairs of pictures of which each was called better by somebody.
    """

    kinds: Mapping[str, int]
    raters: Mapping[str, int]
    undone: int
    images: int
    missing: int
    torn: int
    unreadable: int
    contradictions: int

    def lines(self) -> list[str]:
        """The report for people; what is wrong is said only if there is something."""
        kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(self.kinds.items())) or "no answers yet"
        lines = [f"answers: {kinds}; {self.undone} taken back; {self.images} pictures"]
        if self.raters:
            lines.append("by " + ", ".join(f"{name} {n}" for name, n in sorted(self.raters.items())))
        faults = {
            "torn rows skipped: their writer was killed": self.torn,
            "rows skipped that are no answers; perhaps a newer version wrote them": self.unreadable,
            "pictures whose file is gone; their answers cannot be learned from": self.missing,
            "pairs of pictures that were judged both ways": self.contradictions,
        }
        return lines + [f"{n} {what}" for what, n in faults.items() if n]


class Store:
    """Answers, pictures and prompts in a folder.

    Nothing in it is ever rewritten. Threads may share a store, and processes its folder.

    Args:
        folder: such as RUN/preferences; created by the first write.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._home = Home(self.folder)
        self._answers = RowFile(self.folder / "answers.jsonl", Answer)
        self._images = RowFile(self.folder / "images.jsonl", Image)
        self._known: set[str] | None = None
        self._guard = threading.Lock()

    def append(self, answer: Answer) -> None:
        """Adds an answer; when this returns, it is on disk.

        Raises:
            OSError: it cannot be written.
        """
        self.append_all([answer])

    def append_all(self, answers: Iterable[Answer]) -> None:
        """Adds answers in one write, as an import does."""
        self._answers.append([asdict(answer) for answer in answers])

    def add_image(
        self,
        png: bytes,
        caption: str,
        *,
        side: str = "policy",
        weights: str | None = None,
        noise: Mapping[str, Any] | None = None,
        flagged: bool = False,
    ) -> str:
        """Keeps a picture; one that is already there is not written again, and keeps its first facts.

        Args:
            png: the file.
            caption, side, weights, noise, flagged: see `Image`.

        Returns:
            Its key.

        Raises:
            ValueError: it is not a PNG file.
        """
        if not png.startswith(PNG_START):
            raise ValueError("a picture for the store is not a PNG file; convert it first")
        key = hashlib.sha256(png).hexdigest()
        image = Image(key, caption, weights, side, dict(noise) if noise else None, flagged)
        with self._guard:
            self.keep(self.image_path(key), png)
            self._known = set(self.images()) if self._known is None else self._known
            if key not in self._known:
                self._images.append([asdict(image)])
                self._known.add(key)
        return key

    def image_path(self, key: str) -> Path:
        """Where a picture is; the file may be gone.

        Raises:
            ValueError: that is no key.
        """
        Image(key, "")  # a key from a web page must not lead out of the folder
        return self.folder / "images" / key[:2] / f"{key}.png"

    def add_prompt(self, text: str) -> str:
        """Keeps the text of a prompt and returns its SHA-256."""
        data = text.encode()
        digest = hashlib.sha256(data).hexdigest()
        with self._guard:
            self.keep(self.folder / "prompts" / f"{digest}.txt", data)
        return digest

    def answers(self, *, undone: bool = False) -> list[Answer]:
        """The answers, the oldest first.

        Args:
            undone: also return answers that were taken back, and the rows that take them back.
        """
        rows = self._answers.read()
        return rows if undone else _without_undone(rows)

    def images(self) -> dict[str, Image]:
        """All known pictures by their key."""
        found: dict[str, Image] = {}
        for image in self._images.read():
            found.setdefault(image.key, image)
        return found

    @staticmethod
    def pairs(answers: Iterable[Answer]) -> list[tuple[str, str, str]]:
        """See `pairs`."""
        return pairs(answers)

    def report(self) -> Report:
        """Counts of what the store holds and of what is wrong with it."""
        rows, images = self._answers.read(), self.images()
        valid = _without_undone(rows)
        used = {key for answer in valid for key in answer.images}
        better = {(winner, loser) for _, winner, loser in pairs(valid)}
        return Report(
            kinds=Counter(answer.kind for answer in valid),
            raters=Counter(answer.rater for answer in valid),
            undone=sum(answer.kind != "undo" for answer in rows) - len(valid),
            images=len(images),
            missing=sum(not self.image_path(key).is_file() for key in used),
            torn=self._answers.torn + self._images.torn,
            unreadable=self._answers.unfit + self._images.unfit,
            contradictions=sum((loser, winner) in better for winner, loser in better) // 2,
        )

    def keep(self, path: Path, data: bytes) -> None:
        """Writes a file of the store, whole or not at all; one that is there stays as it is."""
        if not path.exists():
            self._home.ready()
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                atomic_write(path, data)
            except FileNotFoundError:
                if not path.exists():  # if it does, another process has written it and cleared up
                    raise
        # What is left of writers that were killed, also before one that was killed right here; a living one
        # finds the file written.
        for left in path.parent.glob(f".{path.stem}.*.new{path.suffix}"):
            left.unlink(missing_ok=True)


def pairs(answers: Iterable[Answer]) -> list[tuple[str, str, str]]:
    """All `(caption, key of the better picture, key of the worse one)` that rankings imply; no ties."""
    found = []
    for answer in answers:
        ranked = list(zip(answer.ranks or (), answer.images, strict=False))
        for (rank, key), (other_rank, other) in combinations(ranked, 2):
            if rank != other_rank and key != other:  # a picture may have been drawn twice
                found.append((answer.caption, *((key, other) if rank < other_rank else (other, key))))
    return found


def find_store(path: str | Path) -> Store:
    """The store of a project's folder, such as a run's, or the store that `path` itself is.

    Raises:
        ValueError: there is none.
    """
    folder = Path(path)
    for place in (folder / "preferences", folder):
        if (place / "answers.jsonl").is_file():
            return Store(place)
    raise ValueError(
        f"{path} holds no preferences/answers.jsonl; label pictures with python -m dalle_ppo.label, or "
        "import answers with python -m dalle_ppo.preferences import"
    )


def _without_undone(rows: list[Answer]) -> list[Answer]:
    """The answers that still stand; only its own rater takes an answer back."""
    undone = {(row.undoes, row.rater) for row in rows if row.kind == "undo"}
    return [row for row in rows if row.kind != "undo" and (row.id, row.rater) not in undone]
