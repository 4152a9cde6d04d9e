"""Memory that is freed stays in the process, where the C library can be told so."""

import os
import subprocess
import sys

import pytest

from dalle_ppo.base import allocator

AGAIN = """
import resource, sys
import numpy as np
from dalle_ppo.base.allocator import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "kept" else None
def use(times):
    for _ in range(times):
        np.ones(20 << 20, dtype=np.uint8), np.ones(20 << 20, dtype=np.uint8)
use(3)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use(20)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(which: str, **environment: str) -> tuple[str, int]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", AGAIN, which]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=clean | environment)
    kept, count = done.stdout.split()
    return kept, int(count)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_freed_memory_is_used_again_and_not_cleared_again():
    kept, few = faults("kept")
    if kept != "True":
        pytest.skip("the C library has no mallopt")
    _, many = faults("plain")
    # 40 arrays of 5 120 pages; without it, all or half of them are cleared again and again.
    assert few < 5_120 < many


def test_what_the_environment_says_stays(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    monkeypatch.setattr(allocator.ctypes, "CDLL", None)
    assert not allocator.keep_freed_memory()
    monkeypatch.delenv("MALLOC_ARENA_MAX")
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=1")
    assert not allocator.keep_freed_memory()
    monkeypatch.delenv("GLIBC_TUNABLES")
    monkeypatch.setattr(allocator.sys, "platform", "darwin")
    assert not allocator.keep_freed_memory()
