"""SIGTERM and SIGINT end a program in order, in time, and with a line that says how to go on."""

import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from dalle_ppo.base.team import ALONE, Team

GRACE_SECONDS = 28
"""How long a program may take to end in order; after 30 seconds, machines are taken away."""
TOGETHER_SECONDS = 0.25
"""Signals this close together are one wish: launchers pass on what the terminal has sent to all processes."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(BaseException):
    """A signal asked the program to stop. Not an Exception, so that nobody's `except Exception` swallows it.

    Args:
        number: the signal's.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number
        self.exit_code = 128 + number
        self.notes: list[str] = []

    def __str__(self) -> str:
        return "; ".join([self.args[0], *self.notes])


class StopSignals:
    """Tells whether a signal has come, and says where one may interrupt. Without `caught` none is noticed.

    Args:
        team: processes that stop together. Work of several is never interrupted: the others would wait.
    """

    def __init__(self, team: Team = ALONE) -> None:
        self._team = team
        self._came: int | None = None
        self._may_interrupt = False

    def check(self) -> None:
        """Ends here if a signal has come.

        Raises:
            Stopped: it has.
        """
        if self._came is not None:
            raise Stopped(self._came)

    def check_together(self) -> None:
        """Ends here, in all processes of the team, if a signal has come in any.

        Raises:
            Stopped: it has.
        """
        came = [number for number in self._team.gather(self._came) if number is not None]
        if came:
            raise Stopped(came[0])

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """A block that a signal ends at once, wherever it is; elsewhere, it waits for the next `check`.

        Raises:
            Stopped: a signal came in the block or before it.
        """
        if self._team.size > 1:
            yield
            return
        self._may_interrupt = True
        try:
            self.check()
            yield
        finally:
            self._may_interrupt = False

    @contextmanager
    def caught(self, advice: Callable[[], str]) -> Iterator["StopSignals"]:
        """Catches signals. A second one ends the process at once, and so does the end of the grace period.

        Signals within `TOGETHER_SECONDS` of the first count as the same one.

        A signal that the process was started to ignore stays ignored. Outside the main thread, Python can
        catch none.

        Args:
            advice: says how to go on, for the last line.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        caught = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, self._notice) for number in caught}
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        earlier = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        # A thread, because Python's handlers wait for whatever compiled code the main thread is in.
        watch = threading.Thread(target=_watch, args=(reader, advice), name="signals", daemon=True)
        watch.start()
        try:
            yield self
            if self._team.size == 1:
                self.check()
        except Stopped as stopped:
            stopped.notes.append(advice())
            raise
        finally:
            signal.set_wakeup_fd(earlier)
            for number, handler in before.items():
                signal.signal(number, handler)
            writer.close()
            watch.join()
            reader.close()

    def _notice(self, number: int, frame: object) -> None:
        first = self._came is None
        self._came = self._came or number
        if first and self._may_interrupt:
            raise Stopped(number)


def _watch(reader: socket.socket, advice: Callable[[], str]) -> None:
    """Waits for a first signal; after a second one, or too long, ends the process."""
    first = _next_signal(reader, None)
    if first is None:
        return
    time.sleep(TOGETHER_SECONDS)
    while select.select([reader], [], [], 0)[0]:
        if not reader.recv(64):
            return
    second = _next_signal(reader, GRACE_SECONDS)
    if second is None:
        return
    why = "a second signal" if second else f"failing to end cleanly within {GRACE_SECONDS} seconds"
    line = f"{Stopped(first)}; ended at once after {why}"
    try:
        with suppress(Exception):  # the folder that the advice looks into may be gone
            line += f"; {advice()}"
        print(f"\n{line}", file=sys.stderr, flush=True)
    finally:  # the reader of the line may be gone, too
        os._exit(128 + (second or first))


def _next_signal(reader: socket.socket, patience: float | None) -> int | None:
    """The next signal to end on; 0 if none comes in time; None if nobody catches signals any more."""
    while select.select([reader], [], [], patience)[0]:
        received = reader.recv(1)
        if not received:
            return None
        if received[0] in SIGNALS:
            return received[0]
    return 0
