"""A run's folder: how it is checked, kept for one process and prepared."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dalle_ppo.base.atomic import TEMPORARY, remove_leftovers
from dalle_ppo.base.lock import OTHERWISE, locked, refuse_locked
from dalle_ppo.runs.checkpoints import checkpoint_folders, latest_checkpoint, put_back
from dalle_ppo.runs.places import RUN_ENTRIES, enclosing_run, holds_run, quoted, refuse_wrong_path


def check_run_dir(run_dir: str | Path, resume: bool = False, overwrite: bool = False) -> None:
    """Checks a run's folder before anything is loaded; changes nothing and reads no checkpoint.

    Args:
        run_dir, resume, overwrite: as in `prepare_run_dir`.

    Raises:
        ValueError: as `prepare_run_dir`; or another process is writing to the folder.
    """
    folder = Path(run_dir)
    _refuse_unfit(folder, resume, overwrite)
    refuse_locked(folder, f"run_dir: {folder}")


@contextmanager
def sole_writer(run_dir: str | Path, otherwise: str = OTHERWISE) -> Iterator[None]:
    """Keeps other processes from writing to a run's folder, which is made if it is absent.

    Args:
        run_dir: the folder.
        otherwise: what the error offers besides waiting for the other process.

    Raises:
        ValueError: another process is writing to it, or it cannot be made.
    """
    _make(Path(run_dir))
    with locked(Path(run_dir), f"run_dir: {run_dir}", otherwise):
        _clear_up(Path(run_dir))
        yield


def _clear_up(folder: Path) -> None:
    """Removes the halves of files that killed processes left; preferences may have other writers now."""
    for path in folder.glob(".*"):
        if TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)
    for name in ("samples", "evaluation"):
        if not (folder / name).is_symlink():
            remove_leftovers(folder / name)


def prepare_run_dir(run_dir: str | Path, resume: bool = False, overwrite: bool = False) -> Path | None:
    """Prepare a run's folder for writing; call it after everything else has been checked.

    Args:
        run_dir: the folder; created if absent. Files in it that a run does not write are left alone.
        resume: continue the run in it.
        overwrite: remove the run in it (only the entries of RUN_ENTRIES) and start over.

    Returns:
        The checkpoint to resume from; None to start from the first iteration (also when the run to resume
        ended before its first checkpoint).

    Raises:
        ValueError: the folder holds a run and neither flag is given, or holds something else, or has no
            usable checkpoint to resume from, or belongs to another run; in that case nothing has been
            changed.
    """
    folder = Path(run_dir)
    _refuse_unfit(folder, resume, overwrite)
    if resume:
        put_back(folder / "checkpoints")
        return checkpoint_to_resume(folder)
    checkpoints = folder / "checkpoints"
    for name in _occupied(folder):
        _remove(folder / name)
    if checkpoints.is_dir() and not checkpoints.is_symlink():
        checkpoints.rmdir()
    _make(folder)
    return None


def _refuse_unfit(folder: Path, resume: bool, overwrite: bool) -> None:
    if resume and overwrite:
        raise ValueError("resume and overwrite exclude each other; use only one of them")
    if resume:
        refuse_wrong_path(folder, "run_dir", "--resume --run_dir {}")
    run = enclosing_run(folder)
    if run is not None:
        raise ValueError(
            f"run_dir: {folder} lies inside the run {run}; name another folder, or type --resume --run_dir "
            f"{quoted(run)} to continue that run"
        )
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"run_dir: {folder} is a file; name a folder")
    if resume and not holds_run(folder):
        raise ValueError(
            f"run_dir: {folder} holds no run to resume; leave out --resume or name another folder"
        )
    occupied = [] if resume else _occupied(folder)
    if occupied and not overwrite:
        raise ValueError(
            f"run_dir: {folder} already holds a run ({', '.join(occupied)}); "
            "continue it with --resume, replace it with --overwrite, or name another folder"
        )
    if occupied and not holds_run(folder):
        raise ValueError(
            f"run_dir: {folder} is not a run of this program, so overwrite leaves it alone "
            f"(it holds {', '.join(occupied)}); name another folder or remove these yourself"
        )


def checkpoint_to_resume(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run; None if the run ended before its first. Changes nothing.

    Raises:
        ValueError: there are only others.
    """
    checkpoint = latest_checkpoint(folder)
    if checkpoint is None and checkpoint_folders(folder / "checkpoints"):
        raise ValueError(
            f"run_dir: no checkpoint in {folder / 'checkpoints'} is complete; "
            "restore one from a copy, or start over with --overwrite"
        )
    return checkpoint


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"run_dir: {folder} cannot be created ({error.strerror}); name another folder"
        ) from error


def _occupied(folder: Path) -> list[str]:
    return [name for name in RUN_ENTRIES if _exists(folder / name)]


def _exists(path: Path) -> bool:
    """An empty `checkpoints` folder counts as absent, because nothing is lost with it."""
    if path.name == "checkpoints" and path.is_dir() and not path.is_symlink():
        return any(path.iterdir())
    return path.exists() or path.is_symlink()


def _remove(path: Path) -> None:
    """Removes an entry of a run; of `checkpoints` its contents, as `config.yaml` with it makes a run."""
    if path.is_symlink() or not path.is_dir():
        path.unlink()
        return
    for entry in list(path.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    if path.name != "checkpoints":
        path.rmdir()
