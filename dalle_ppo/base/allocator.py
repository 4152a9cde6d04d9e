"""Makes the C library keep memory that is freed, because it is asked for again at once."""

import ctypes
import os
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Numbers of the settings in glibc's malloc.h."""
KEPT_BYTES, LARGEST_KEPT_BYTES = 2**31 - 1, 32 * 2**20
"""Free memory that is kept, and the size of a block above which it goes back at once: the most that every
version of glibc takes."""


def keep_freed_memory() -> bool:
    """Keeps feature maps and activations of up to 32 MB in the process when they are freed.

    By default glibc gives them back to the system, which has to clear them page by page when they are needed
    again: a tenth of an evaluation's time on a CPU (benchmarks/RESULTS.md). The default run's peak of memory
    is 1.8 GB, and was 1.6. Only for Linux with glibc, and not where the environment sets up the allocator.

    Returns:
        Whether it was done.

    Source: https://man7.org/linux/man-pages/man3/mallopt.3.html
    """
    chosen = any(name.startswith("MALLOC_") for name in os.environ) or "GLIBC_TUNABLES" in os.environ
    if sys.platform != "linux" or chosen:
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    # Both or none: one of them alone switches off the threshold that adapts, which is then far too low.
    return bool(
        mallopt is not None
        and mallopt(MMAP_THRESHOLD, LARGEST_KEPT_BYTES)
        and mallopt(TRIM_THRESHOLD, KEPT_BYTES)
    )
