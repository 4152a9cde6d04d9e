"""Whether the disk has room for a run's checkpoints, looked at before anything is trained."""

import os
from dataclasses import dataclass
from pathlib import Path

from dalle_ppo.runs.checkpoints import checkpoint_folders
from dalle_ppo.runs.space import GO_ON, check_space, free_bytes, warn_of_little_space
from dalle_ppo.training.checkpointing import expected_bytes
from dalle_ppo.training.memory import gb
from dalle_ppo.training.replay import buffer_bytes
from dalle_ppo.training.trainer import Trainer


@dataclass(frozen=True)
class Room:
    """What checkpoints will take.

    Args:
        folder: the run's, or the nearest one above it that exists.
        one: bytes of a checkpoint.
        more: how many will be added before the first is removed; 0 if nothing is left to train.
        freed: bytes that the run frees before it begins.
    """

    folder: Path
    one: int
    more: int
    freed: int = 0

    def line(self) -> str:
        """For people."""
        if not self.more:
            return "disk: no checkpoint is left to write"
        free = free_bytes(self.folder) + self.freed
        return f"disk: checkpoints need {gb(self.one * self.more)} GB of the {gb(free)} GB that are free"


def check_room(trainer: Trainer, replaced: bool = False) -> Room:
    """Looks at the disk, of the run's folder or where it will be.

    Args:
        trainer: at the iteration where it will begin.
        replaced: whether the run in the folder will be removed first, as `--overwrite` does.

    Returns:
        What is needed. There is a warning if not all of it fits.

    Raises:
        ValueError: not even one checkpoint fits, or the folder cannot be written to.
    """
    config, parent = trainer.config, trainer.run_dir / "checkpoints"
    folder = existing(trainer.run_dir)
    if not os.access(folder, os.W_OK):
        raise ValueError(f"run_dir: {trainer.run_dir} cannot be written to; name another folder")
    needed = expected_bytes(trainer.actor, trainer.critic) + kept_images(trainer)
    if trainer.progress.iteration >= config.num_iterations:
        return Room(folder, needed, 0)
    there = 0 if replaced else len(checkpoint_folders(parent))
    freed = sum(file.stat().st_size for file in parent.rglob("*") if file.is_file()) if replaced else 0
    # One more than are kept: the oldest is removed once the newest is complete.
    kept = config.keep_checkpoints + (config.keep_best is not None)
    more = max(1, kept + 1 - there)
    way_out = "free some, or name another run_dir" if there == 0 else GO_ON
    check_space(folder, needed, freed, way_out)
    warn_of_little_space(folder, needed, more, freed)
    return Room(folder, needed, more, freed)


def kept_images(trainer: Trainer) -> int:
    """Bytes of the images that a checkpoint holds, if the objective replays any."""
    sizes = trainer.networks.reference.config
    return buffer_bytes(trainer.config, sizes.num_image_tokens, sizes.num_codes)


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder
