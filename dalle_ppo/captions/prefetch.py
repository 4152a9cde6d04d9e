"""Captions drawn ahead in a thread, so that training does not wait for files or the network."""

import time
import warnings
from collections import deque
from collections.abc import Mapping
from threading import Thread
from typing import Any

from dalle_ppo.captions.source import CaptionSource, position_metrics
from dalle_ppo.captions.streams import CaptionRecord

BATCHES_AHEAD = 8
SECONDS_BETWEEN_WARNINGS = 30.0


class PrefetchedCaptions:
    """A source whose next batches are drawn while the current one is in use.

    Batches and their order are the source's. The position is that of the last batch handed out, however much
    has been drawn ahead, and an error is raised when the batch that it concerns is due.

    Args:
        source: the source; nothing else may draw from it.
        ahead: how many batches to draw ahead.
    """

    def __init__(self, source: CaptionSource, ahead: int = BATCHES_AHEAD):
        self._source, self._ahead, self.contents = source, ahead, source.contents
        self._position = source.state_dict()
        self._size = 0
        self._drawings: deque[_Drawing] = deque()
        self._last: _Drawing | None = None
        self._start_over = False

    def next_batch(self, n: int) -> list[CaptionRecord]:
        """The next `n` captions; ask for the same number each time, or what was drawn ahead is dropped.

        Raises:
            ValueError: the source raised it; asking again tries again.
        """
        if n != self._size:
            self._size = n
            self._drop_ahead()
        self._draw_ahead()
        drawing = self._drawings[0]
        _wait_for(drawing)
        if drawing.error is not None:
            self._drop_ahead()
            raise drawing.error
        self._drawings.popleft()
        self._position = drawing.position
        self._draw_ahead()
        return drawing.records

    def metrics(self) -> dict[str, float]:
        """Numbers to log, up to the last batch handed out: see `position_metrics`."""
        return position_metrics(self._position)

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch handed out; the source accepts it too."""
        return self._position

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a saved position, at once even if a read has stalled.

        Raises:
            ValueError: the position belongs to other captions or settings.
        """
        self._source.check_position(state)
        self._position = dict(state)
        self._drop_ahead()

    def _drop_ahead(self) -> None:
        for drawing in self._drawings:
            drawing.cancelled = True
        self._drawings.clear()
        self._start_over = True

    def _draw_ahead(self) -> None:
        while len(self._drawings) < self._ahead:
            start = self._position if self._start_over else None
            self._start_over = False
            self._last = _Drawing(self._source, self._size, start, self._last)
            self._last.start()
            self._drawings.append(self._last)


class _Drawing(Thread):
    """Draws one batch once the previous drawing is done, so that one thread at a time touches the source.

    A daemon thread, because a stalled read must not keep the program from ending.
    """

    def __init__(
        self, source: CaptionSource, size: int, start: Mapping[str, Any] | None, before: "_Drawing | None"
    ):
        super().__init__(name="captions", daemon=True)
        self.cancelled = False
        self.error: Exception | None = None
        self.records: list[CaptionRecord] = []
        self.position: dict[str, Any] = {}
        self._source, self._size, self._start, self._before = source, size, start, before

    def run(self) -> None:
        before, self._before = self._before, None
        if before is not None:
            before.join()
            if self._start is None and before.error is not None:
                self.error = before.error
        if self.cancelled or self.error is not None:
            return
        try:
            if self._start is not None:
                self._source.load_state_dict(self._start)
            self.records = self._source.next_batch(self._size)
            self.position = self._source.state_dict()
        except Exception as error:
            self.error = error


def _wait_for(drawing: _Drawing) -> None:
    """Waits, with a warning now and then if it takes long."""
    started = time.monotonic()
    while True:
        drawing.join(SECONDS_BETWEEN_WARNINGS)
        if not drawing.is_alive():
            return
        seconds = time.monotonic() - started
        warnings.warn(f"captions: still waiting for the next batch after {seconds:.0f} seconds", stacklevel=3)
