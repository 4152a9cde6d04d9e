"""Draws sets ahead of the people who label them, in a thread of its own."""

import threading
from typing import Protocol

from dalle_ppo.preferences.answer import PictureSet
from dalle_ppo.preferences.store import Store

PATIENCE = 5.0
"""Seconds to wait for the end of a drawing when the page is closed."""
SAME = 50
"""Sets in a row that hold one picture only, after which there is no point in drawing more."""
RETRY = 10.0
"""Seconds after which a drawing that failed is tried again."""


class Draws(Protocol):
    """What is needed of a drawer; a set's number alone says what it shows."""

    store: Store

    def set_id(self, number: int) -> str:
        """The id of a set, without drawing it."""

    def draw(self, number: int) -> PictureSet:
        """Draws a set into the store."""


class Ahead:
    """A list of sets that grows in the background as it is wanted; all raters go through it.

    Args:
        drawer: draws set after set; only the thread of this object calls it.
    """

    def __init__(self, drawer: Draws):
        self._drawer = drawer
        self._changed = threading.Condition()
        self._ready: list[PictureSet] = []
        self._known: dict[str, PictureSet] = {}
        self._wanted, self._number, self._stopped = 0, 0, False
        self._thread = threading.Thread(target=self._run, name="draw ahead", daemon=True)
        self.error = ""

    def start(self) -> None:
        """Starts to draw; the sets that have answers already come first and are not drawn again."""
        for answer in self._drawer.store.answers():
            self._known.setdefault(answer.set_id, PictureSet(answer.set_id, answer.caption, answer.images))
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after the set that it is drawing; a large model may take longer than this waits."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join(PATIENCE)

    def want(self, number: int) -> None:
        """Asks for this many sets in all."""
        with self._changed:
            if number > self._wanted:
                self._wanted = number
                self._changed.notify_all()

    def sets(self) -> list[PictureSet]:
        """The sets so far, in the order in which they are shown."""
        with self._changed:
            return list(self._ready)

    def _run(self) -> None:
        while self._wait():
            try:
                self._add(self._draw_next())
                self.error = ""
            except Exception as error:  # a thread that dies says nothing: the page has to tell
                self.error = " ".join(f"{error or type(error).__name__}".split())
                with self._changed:
                    self._changed.wait_for(lambda: self._stopped, RETRY)

    def _wait(self) -> bool:
        """Waits until sets are wanted; False at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or len(self._ready) < self._wanted)
            return not self._stopped

    def _add(self, shown: PictureSet) -> None:
        with self._changed:
            self._ready.append(shown)

    def _draw_next(self) -> PictureSet:
        """The next set with at least two pictures that differ.

        The reference draws from the policy's noise, so an early policy's picture may be the same.
        """
        for _ in range(SAME):
            drawn = self._answered(self._number) or self._drawer.draw(self._number)
            self._number += 1  # only now: a drawing that failed is tried again
            images = tuple(dict.fromkeys(drawn.images))
            if len(images) > 1:
                return PictureSet(drawn.id, drawn.caption, images)
        raise ValueError(
            f"{SAME} sets in a row hold one picture several times; policy and reference may still be alike: "
            "train further, or leave out --reference"
        )

    def _answered(self, number: int) -> PictureSet | None:
        """A set that has an answer and all its pictures."""
        known = self._known.get(self._drawer.set_id(number))
        store = self._drawer.store
        return known if known and all(store.image_path(key).is_file() for key in known.images) else None
