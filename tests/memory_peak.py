"""How much memory a call needs at its worst, as the operating system counts it."""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

import pytest


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


def peak_growth(call: Callable[[], object]) -> tuple[int, object]:
    """Bytes by which resident memory, mapped files included, grows at its highest; and what `call` returns.

    The test is skipped where the high-water mark cannot be reset.
    """
    try:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # memory freed earlier would hide what is taken now
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        pytest.skip("this system cannot reset the peak of resident memory")
    before = _status("VmRSS")
    result = call()
    return _status("VmHWM") - before, result
