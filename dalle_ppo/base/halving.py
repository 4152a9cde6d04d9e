"""Work that runs out of memory is done again with half as many images at a time."""

import gc
import sys
import warnings
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

FAILURES = ("can't allocate memory", "not enough memory", "out of memory", "alloc_failed")
"""How an error without a type of its own says it, in lower case: torch's on a CPU, on Linux and on Windows;
on a GPU those of CUDA, Triton and cuBLAS, which allocate beside torch."""

OUT_OF_MEMORY = "out of memory while"


class OutOfMemory(ValueError):
    """Not even one image fits; the message names the setting and what helps."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory has run out: torch's on a GPU or a CPU, or Python's."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in FAILURES)


def out_of_memory_line(error: BaseException) -> str:
    """An error for which `is_out_of_memory` holds, as one line that says what to lower."""
    reason = " ".join(str(error).split())
    if reason.startswith(OUT_OF_MEMORY):
        return reason  # of `Halving`, with advice of its own
    return f"out of memory: {reason}; use smaller batches, a smaller model or another device"


class Halving:
    """How many images at a time have proved to fit, by kind of work; a run has one of these.

    Args:
        together: kinds of work in which processes wait for each other within it, so that none can try again.

    Attributes:
        sizes: images that fit, by kind of work that has run out of memory.
        units: images that cannot be split, by kind of work; 1 where nothing is said.
    """

    def __init__(self, together: tuple[str, ...] = ()) -> None:
        self.sizes: dict[str, int] = {}
        self.units: dict[str, int] = {}
        self.together = together

    def run(self, what: str, setting: str, size: int, work: Callable[[int], Result]) -> Result:
        """Does work, with fewer images at a time until it fits; the number is kept for the next time.

        Args:
            what: the kind of work, as in "out of memory while scoring".
            setting: the setting that makes it need less.
            size: images at a time, as the settings say.
            work: does all of it with as many images at a time as it is told; the result must not depend on
                that, and a failed attempt must leave nothing behind.

        Raises:
            OutOfMemory: the smallest number of images at a time does not fit either.
            RuntimeError: it does not fit, and other processes wait in the middle of the work.
        """
        unit = self.units.get(what, 1)
        one = "one image" if unit == 1 else f"{unit} images"
        size = min(size, self.sizes.get(what, size))
        while True:
            try:
                return work(size)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = " ".join(str(error).split())[:200]
            # Only here are the frames gone that held the failed attempt's tensors.
            _release()
            if what in self.together:
                raise RuntimeError(
                    f"{OUT_OF_MEMORY} {what} {size} images at a time ({reason}); processes that share "
                    f"networks cannot try again with fewer: lower {setting}, and go on with --resume"
                )
            if size <= unit:
                raise OutOfMemory(
                    f"{OUT_OF_MEMORY} {what} {one} at a time ({reason}); lower {setting}, or use a "
                    "smaller model or a device with more memory, and go on with --resume"
                )
            self.sizes[what] = half = max(unit, size // 2 // unit * unit)
            warnings.warn(
                f"{OUT_OF_MEMORY} {what} {size} images at a time ({reason}); going on with {half}. "
                f"A lower {setting} avoids this",
                stacklevel=2,
            )
            size = half


def _release() -> None:
    """Gives a GPU's memory back that is no longer used; on a CPU, that has happened already."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
