"""Output that does not end a program when nobody reads it any more, as after Ctrl-C has also ended `tee`."""

import os
from contextlib import suppress
from typing import Any, TextIO


class Lasting:
    """A text stream that drops what cannot be written.

    A progress bar, a warning or a last line that raised BrokenPipeError would otherwise take the place of
    what the program was about to do, such as to save.

    Args:
        stream: such as `sys.stderr`.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes what can be written; returns the number of characters."""
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Passes on what can be passed on."""
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def let_go(stream: TextIO | None) -> None:
    """Drops what a stream holds and cannot write: at its end, Python would turn it into exit code 120.

    Args:
        stream: None, as Python has it for one that was closed from the start, is passed over.
    """
    if stream is None:
        return
    try:
        stream.flush()
    except OSError:
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
