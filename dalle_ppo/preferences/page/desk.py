"""Hands out sets to raters, some of them twice, and keeps what they answer."""

import hashlib
import threading
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from dalle_ppo.preferences.answer import Answer, PictureSet, new_id
from dalle_ppo.preferences.page.ahead import Ahead
from dalle_ppo.preferences.page.figures import figures
from dalle_ppo.preferences.page.given import read_answer, read_id, read_rater
from dalle_ppo.preferences.store import Store

QUEUE = 4
"""Sets that a browser holds: the one it shows, and those whose pictures it loads ahead."""
AHEAD = 16
"""Sets that are drawn before their rater gets to them."""
GAP = 6
"""Between a set and its repetition lie at least this many showings less one."""


@dataclass(frozen=True)
class Showing:
    """A set as a rater sees it.

    Args:
        set_id: which set.
        caption: what the pictures shall show.
        images: keys, from left to right.
        flagged: for each, whether the detector finds it unsafe.
        name: of this showing; a repetition has another one.
    """

    set_id: str
    caption: str
    images: tuple[str, ...]
    flagged: tuple[bool, ...]
    name: str = field(default_factory=new_id)


class Desk:
    """What each rater sees next. Threads may share it.

    Args:
        store: keeps the answers.
        ahead: where new sets come from.
        repeat: share of showings that show a set again, in another order.
        goal: how many answers are wanted in all; only for showing progress.
    """

    def __init__(self, store: Store, ahead: Ahead, repeat: float = 0.1, goal: int = 200):
        self._store, self._ahead, self._repeat, self._goal = store, ahead, repeat, goal
        self._lock = threading.RLock()
        self._queues: dict[str, list[Showing]] = {}
        self._ids = {row.id for row in store.answers(undone=True)}
        self._flagged: dict[str, bool] = {}

    def project(self) -> str:
        """Tells the stores of two runs apart, so that a browser sends no answer to the wrong one."""
        return _digest(str(self._store.folder.resolve()))[:16]

    def hello(self) -> dict[str, Any]:
        """What the page needs before it knows who is there."""
        people = {row.rater for row in self._store.answers() if row.source == "person"}
        return {"project": self.project(), "raters": sorted(people)}

    def state(self, rater: str) -> dict[str, Any]:
        """What a rater sees: the sets to come, and figures.

        Raises:
            ValueError: the name is no name, or a model's.
        """
        rater = read_rater(rater)
        with self._lock:
            answers = self._store.answers()
            if any(row.rater == rater and row.source == "model" for row in answers):
                raise ValueError(f"{rater} is the name of a model that has answered here; type another one")
            mine = [row for row in answers if row.rater == rater and row.source == "person"]
            queue = self._fill(rater, mine)
            return {
                **self.hello(),
                "rater": rater,
                "queue": [asdict(showing) for showing in queue],
                "figures": asdict(figures(answers, rater, self._goal)),
                "last": mine[-1].id if mine else None,
                "error": self._ahead.error,
            }

    def answer(self, body: Any) -> dict[str, Any]:
        """Keeps an answer, once however often it is sent, and returns the new state.

        Args:
            body: decoded JSON: `id`, `rater`, `name` of the showing, `set_id`, `caption`, `images`, `kind`,
                `ranks`, `all_bad`, `seconds`, `waited` (seconds since it was given).

        Raises:
            ValueError: it is no answer to pictures of this store.
            OSError: it cannot be written.
        """
        row = read_answer(body)
        with self._lock:
            if row.id not in self._ids:
                self._check_images(row)
                self._store.append(row)
                self._ids.add(row.id)
            queue = self._queues.get(row.rater, [])
            queue[:] = [showing for showing in queue if showing.name != body.get("name")]
            return self.state(row.rater)

    def undo(self, body: Any) -> dict[str, Any]:
        """Takes an answer back and shows its set again, as it was shown.

        Args:
            body: decoded JSON: `id` of the new row, `rater`, `undoes`.

        Raises:
            ValueError: it is no such request.
            OSError: it cannot be written.
        """
        body = body if isinstance(body, dict) else {}
        rater, row_id, undoes = read_rater(body.get("rater")), read_id(body.get("id")), body.get("undoes")
        with self._lock:
            standing = {row.id: row for row in self._store.answers() if row.rater == rater}
            row = standing.get(undoes) if isinstance(undoes, str) else None
            if row is not None and row.source == "person" and row_id not in self._ids:
                facts = {"caption": row.caption, "images": row.images, "set_id": row.set_id}
                undo = Answer(**facts, kind="undo", rater=rater, source="person", undoes=row.id, id=row_id)
                self._store.append(undo)
                self._ids.add(row_id)
                shown = self._showing(row.set_id, row.caption, row.images)
                queue = self._queues.setdefault(rater, [])
                queue[:] = [shown] + [other for other in queue if other.set_id != row.set_id]
            return self.state(rater)

    def _check_images(self, row: Answer) -> None:
        images = self._store.images()
        if len(set(row.images)) < max(2, len(row.images)) or any(key not in images for key in row.images):
            raise ValueError("an answer names pictures that this run does not have; reload the page")

    def _fill(self, rater: str, mine: list[Answer]) -> list[Showing]:
        """Fills a rater's queue, and sees to it that more is drawn."""
        queue = self._queues.setdefault(rater, [])
        times = Counter(row.set_id for row in mine)
        sets = self._ahead.sets()
        fresh = [each for each in sets if not times[each.id]]
        self._ahead.want(len(sets) + AHEAD - len(fresh))
        while len(queue) < QUEUE:
            waiting = {showing.set_id for showing in queue}
            unseen = (each for each in fresh if each.id not in waiting and self._is_there(each.images))
            new = next(unseen, None)
            showing = self._repetition(mine, times, queue) or (new and self._first_showing(rater, new))
            if not showing:
                break
            queue.append(showing)
        return queue

    def _first_showing(self, rater: str, new: PictureSet) -> Showing:
        """A set in an order of its own for each rater, so that a liking for a place averages out."""
        images = tuple(sorted(new.images, key=lambda key: _digest(f"{rater}|{new.id}|{key}")))
        return self._showing(new.id, new.caption, images)

    def _repetition(self, mine: list[Answer], times: Counter, queue: list[Showing]) -> Showing | None:
        """A set that was answered once, in reverse order, if one is due."""
        shown = len(mine) + len(queue)
        repeats = sum(n - 1 for n in times.values()) + sum(times[showing.set_id] > 0 for showing in queue)
        if repeats + 1 > self._repeat * (shown + 1):
            return None
        waiting = {showing.set_id for showing in queue}
        old = [
            row
            for row in mine[: max(0, shown - GAP)]
            if row.kind == "ranking" and times[row.set_id] == 1 and row.set_id not in waiting
        ]
        start = int(_digest(str(shown)), 16) % max(1, len(old))
        row = next((row for row in old[start:] + old[:start] if self._is_there(row.images)), None)
        return row and self._showing(row.set_id, row.caption, row.images[::-1])

    def _showing(self, set_id: str, caption: str, images: tuple[str, ...]) -> Showing:
        if any(key not in self._flagged for key in images):
            self._flagged = {key: image.flagged for key, image in self._store.images().items()}
        return Showing(set_id, caption, images, tuple(self._flagged.get(key, False) for key in images))

    def _is_there(self, images: tuple[str, ...]) -> bool:
        return all(self._store.image_path(key).is_file() for key in images)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
