"""Output folders of commands: always new, and written whole or not at all."""

import itertools
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def refuse_existing(out: Path) -> None:
    """Checks --out before any costly work.

    Raises:
        ValueError: the folder exists.
    """
    if out.exists():
        raise ValueError(f"--out {out} already exists; name another folder or remove it")


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Yields a temporary folder that becomes `out` at the end; after an error, nothing of it is left.

    Raises:
        ValueError: meanwhile somebody else has made `out`. What was written is kept, under another name.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        place = _free_name(out)
        temporary.rename(place)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if place != out:
        raise ValueError(f"--out {out} was made by another process meanwhile; the result is in {place}")


def _free_name(out: Path) -> Path:
    """`out`, or the first of out-2, out-3, ... that does not exist."""
    names = (out.with_name(f"{out.name}-{number}") for number in itertools.count(2))
    return next(place for place in itertools.chain([out], names) if not place.exists())
