"""A run's folder: what a run writes into it, and how it is prepared."""

import shutil
from pathlib import Path

from dalle_ppo.runs.checkpoints import (
    CHECKPOINT_NAME,
    TEMPORARY_NAME,
    checkpoint_folders,
    latest_checkpoint,
)

# What a run writes into its folder. `config.yaml` is last: entries are removed in this order, and a
# folder whose removal was interrupted still counts as a run.
RUN_ENTRIES = (
    "tensorboard",
    "samples",
    "evaluation",
    "evaluation.json",
    "report.html",
    "checkpoints",
    "metrics.jsonl",
    "config.yaml",
)


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
            usable checkpoint to resume from; in that case nothing has been changed.
    """
    folder = Path(run_dir)
    if resume and overwrite:
        raise ValueError("resume and overwrite exclude each other; use only one of them")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"run_dir: {folder} is a file; name a folder")
    if resume:
        return _checkpoint_to_resume(folder)
    occupied = [name for name in RUN_ENTRIES if _exists(folder / name)]
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
    for name in occupied:
        _remove(folder / name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"run_dir: {folder} cannot be created ({error.strerror}); name another folder"
        ) from error
    return None


def holds_run(run_dir: str | Path) -> bool:
    """Whether a folder looks like a run: a config, and metrics or a folder that holds only checkpoints."""
    folder = Path(run_dir)
    checkpoints = folder / "checkpoints"
    names = [entry.name for entry in checkpoints.iterdir()] if checkpoints.is_dir() else []
    if any(not (CHECKPOINT_NAME.fullmatch(name) or TEMPORARY_NAME.fullmatch(name)) for name in names):
        return False
    return (folder / "config.yaml").is_file() and (
        checkpoints.is_dir() or (folder / "metrics.jsonl").is_file()
    )


def _checkpoint_to_resume(folder: Path) -> Path | None:
    if not holds_run(folder):
        raise ValueError(
            f"run_dir: {folder} holds no run to resume; leave out --resume or name another folder"
        )
    checkpoint = latest_checkpoint(folder)
    if checkpoint is None and checkpoint_folders(folder / "checkpoints"):
        raise ValueError(
            f"run_dir: no checkpoint in {folder / 'checkpoints'} is complete; "
            "restore one from a copy, or start over with --overwrite"
        )
    return checkpoint


def _exists(path: Path) -> bool:
    """An empty `checkpoints` folder counts as absent, because nothing is lost with it."""
    if path.name == "checkpoints" and path.is_dir() and not path.is_symlink():
        return any(path.iterdir())
    return path.exists() or path.is_symlink()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
