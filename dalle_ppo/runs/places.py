"""Paths that users mistake for a run: one inside it, or a folder that holds several runs."""

import os
import re
import shlex
import subprocess
from pathlib import Path

from dalle_ppo.base.lock import LOCK_FILE

CHECKPOINT_NAME = re.compile(r"step_(\d{6,})")
TEMPORARY_NAME = re.compile(r"\.step_\d{6,}\.(new|old)")
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
SHOWN = 3
POLICY_GROUPS = ("policy", "adapter_model")
"""What a checkpoint calls the policy's tensors: all weights, or adapters alone (the name is peft's)."""


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


def refuse_wrong_path(path: str | Path, name: str, form: str) -> None:
    """Refuses a path that is not a run, if the run that was meant can be told from it.

    Args:
        path: what the user gave; a run, an absent folder or anything else passes.
        name: what the error calls it, such as "run_dir".
        form: what to type instead, with `{}` for the run's folder, which is quoted for a shell.

    Raises:
        ValueError: it lies inside a run, or is a folder of runs.
    """
    path = Path(path)
    if holds_run(path):
        return
    run = enclosing_run(path)
    if run is not None:
        raise ValueError(f"{name}: {path} lies inside the run {run}; type {form.format(quoted(run))}")
    runs = runs_in(path)
    if runs:
        listed = ", ".join(map(str, runs[:SHOWN])) + (", ..." if len(runs) > SHOWN else "")
        newest = form.format(quoted(runs[0]))
        raise ValueError(f"{name}: {path} is not a run, but holds {listed}; type {newest}")


def quoted(path: Path) -> str:
    """A path as a shell takes it, for commands to copy."""
    return subprocess.list2cmdline([str(path)]) if os.name == "nt" else shlex.quote(str(path))


def enclosing_run(path: str | Path) -> Path | None:
    """The run whose files a path belongs to; None if there is none. The path need not exist."""
    given = Path(path)
    below = given.absolute()
    for folder in below.parents:
        if below.relative_to(folder).parts[0] in (*RUN_ENTRIES, LOCK_FILE) and holds_run(folder):
            return _as_given(folder, given)
    return None


def checkpoint_of(path: str | Path) -> int | None:
    """The iteration of the checkpoint that a path is, or lies in; None if there is none."""
    found = [match for part in Path(path).absolute().parts if (match := CHECKPOINT_NAME.fullmatch(part))]
    return int(found[-1][1]) if found else None


def runs_in(path: str | Path) -> list[Path]:
    """The runs directly in a folder, the newest first."""
    folder = Path(path)
    if not folder.is_dir():
        return []
    found = [entry for entry in folder.iterdir() if entry.is_dir() and holds_run(entry)]
    return sorted(found, key=lambda run: (run / "config.yaml").stat().st_mtime, reverse=True)


def _as_given(folder: Path, given: Path) -> Path:
    """The folder as a relative path, if the user's path was relative and that needs no `..`."""
    if given.is_absolute():
        return folder
    try:
        short = os.path.relpath(folder)
    except ValueError:  # on another drive
        return folder
    return folder if short.startswith(os.pardir) else Path(short)
