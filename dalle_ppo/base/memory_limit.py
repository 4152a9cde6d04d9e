"""A bound on memory while a library reads a file that may come from a stranger."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_IN_USE = Path("/proc/self/statm")


@contextmanager
def memory_at_most(num_bytes: int) -> Iterator[None]:
    """Lets allocations fail that go beyond what the process has now by more than `num_bytes`.

    Linux only; elsewhere it does nothing. It holds for all threads, and a new thread needs memory for its
    stack: keep the body to calls that start none.

    Args:
        num_bytes: of address space, on top of what is in use.

    Raises:
        MemoryError: from Python; libraries raise what they raise when memory has run out.
    """
    if not _IN_USE.exists():
        yield
        return
    import resource

    now, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = int(_IN_USE.read_text().split()[0]) * resource.getpagesize() + num_bytes
    highest = [value for value in (now, hard) if value != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([limit, *highest]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (now, hard))
