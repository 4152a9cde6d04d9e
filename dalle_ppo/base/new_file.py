"""Output files of commands: none replaces a file that is there."""

from pathlib import Path


def check_new_file(option: str, path: Path, suffix: str, *beside: Path) -> None:
    """Checks an output file before any costly work.

    Args:
        option: the option that names it, for messages.
        path: the file.
        suffix: what its name must end in.
        beside: other files or folders that are written with it.

    Raises:
        ValueError: the name has another suffix, one of them exists, or there is no such folder.
    """
    if path.suffix != suffix:
        raise ValueError(f"{option} is {path}; its name must end in {suffix}")
    if path.exists():
        raise ValueError(f"{option} {path} already exists; name another file or remove it")
    for other in beside:
        if other.exists():
            raise ValueError(
                f"{option} {path}: {other}, which is written with it, already exists; name another file or "
                "remove that"
            )
    if not path.parent.is_dir():
        raise ValueError(f"{option} {path}: there is no folder {path.parent}; create it first")
