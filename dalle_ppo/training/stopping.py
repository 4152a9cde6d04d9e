"""What a run leaves behind when it ends before its time: by an error, a signal or a lack of memory."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dalle_ppo.base.stopping import Stopped
from dalle_ppo.training.optim import Learner
from dalle_ppo.training.progress import Progress


@contextmanager
def saved_if_it_ends(trainer: Any) -> Iterator[None]:
    """An iteration that an error or a signal ends is dropped, and the state before it is saved.

    If optimisers have taken steps in it, that state is gone. Then nothing is saved: the newest checkpoint
    leads to the same numbers.

    Args:
        trainer: a Trainer, between two iterations.

    Raises:
        ValueError: as in the block; its message says if nothing was saved.
        Stopped: as in the block.
    """
    before = trainer.captions.state_dict(), trainer.progress.to_dict()
    steps = steps_taken(trainer.actor, trainer.critic)
    try:
        yield
    except (ValueError, Stopped) as ending:
        trainer.captions.load_state_dict(before[0])
        trainer.progress = Progress.from_dict(before[1])
        problem = _save(trainer, steps)
        if problem is None:
            raise
        if isinstance(ending, Stopped):
            ending.notes.append(problem)
            raise
        raise ValueError(f"{ending}; {problem}") from ending


def _save(trainer: Any, steps: int) -> str | None:
    """Saves the state before the iteration; returns why it could not."""
    if steps_taken(trainer.actor, trainer.critic) != steps:
        return "no checkpoint was written, as the iteration's updates had begun; the newest one is complete"
    try:
        trainer.save(spare=1)
    except (ValueError, OSError) as error:
        return f"no checkpoint could be written ({error}); earlier ones are complete"
    return None


def steps_taken(*learners: Learner | None) -> int:
    """How many steps optimisers have taken together; the first parameter stands for all of each."""
    states = [list(learner.optimizer.state.values())[:1] for learner in learners if learner is not None]
    return sum(int(entry["step"]) for state in states for entry in state)


class Clock:
    """Says when the next checkpoint by time is due. It cannot be set back.

    Args:
        minutes: between checkpoints; None for never.
    """

    def __init__(self, minutes: float | None) -> None:
        self.seconds = None if minutes is None else 60 * minutes
        self.last = time.monotonic()

    def due(self) -> bool:
        """Whether so much time has passed since the last checkpoint."""
        return self.seconds is not None and time.monotonic() - self.last >= self.seconds

    def restart(self) -> None:
        """Notes that a checkpoint has been written."""
        self.last = time.monotonic()
