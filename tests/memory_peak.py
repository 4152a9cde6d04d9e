"""How much memory a call needs at its worst, as the operating system counts it."""

import ctypes
import gc
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
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


def alone(function: Callable, *arguments: object) -> object:
    """Calls a function of a module in a fresh process: late in a session of tests, memory that this one freed
    and touches again blurs what a call takes."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *arguments).result()
