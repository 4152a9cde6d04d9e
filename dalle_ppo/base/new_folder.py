"""Output folders of commands: always new, and written whole or not at all."""

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
    """Yields a temporary folder that becomes `out` at the end; after an error, nothing of it is left."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        temporary.rename(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
