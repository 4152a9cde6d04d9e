"""Whether the disk has room for checkpoints, before they are written."""

import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

GO_ON = "free some, then go on with --resume"

STATE_BYTES = 1 << 20
"""Room for `state.json` and the heads of the files; with it, a check passes only if the rest fits too."""


def bytes_of(tensors: Mapping[str, Mapping[str, Tensor]]) -> int:
    """The size of a checkpoint that holds these groups of tensors."""
    return STATE_BYTES + sum(t.nbytes for group in tensors.values() for t in group.values())


def free_bytes(folder: Path) -> int:
    """Free bytes of the disk with this folder, which exists."""
    return shutil.disk_usage(folder).free


def check_space(folder: Path, needed: int, freed: int = 0, way_out: str = GO_ON) -> None:
    """Refuses to write what does not fit.

    Args:
        folder: where a checkpoint is to be written; it exists.
        needed: bytes.
        freed: bytes that will be free besides those that are.
        way_out: what the user can do.

    Raises:
        ValueError: the disk has less.
    """
    free = free_bytes(folder) + freed
    if free < needed:
        raise ValueError(
            f"{folder}: a checkpoint needs {needed / 1e6:.0f} MB, but only {free / 1e6:.0f} MB of the disk "
            f"are free; {way_out}"
        )


def warn_of_little_space(folder: Path, needed: int, more: int, freed: int = 0) -> None:
    """Warns if the next checkpoints will not fit, while there is time to do something.

    Args:
        folder: where they will be written; it exists.
        needed: bytes of one.
        more: how many will be added before the first is removed.
        freed: bytes that will be free besides those that are.
    """
    free = free_bytes(folder) + freed
    if free < needed * more:
        count = "the next checkpoint needs" if more == 1 else f"the next {more} checkpoints need"
        warnings.warn(
            f"{folder}: {count} {needed * more / 1e6:.0f} MB, but only {free / 1e6:.0f} MB of the disk are "
            "free; free some space, or the run will stop there",
            stacklevel=2,
        )
