"""The processes that train one model together; a process by itself is the team of one."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Team:
    """What captions, credit, optimiser and writers ask instead of asking about processes.

    Args:
        rank: number of this process, from 0.
        size: how many processes there are.
    """

    rank: int = 0
    size: int = 1

    def __post_init__(self) -> None:
        assert (self.rank, self.size) == (0, 1), "a team of several processes is not built yet"

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, by rank."""
        return [value]

    def mean(self, value: float) -> float:
        """The mean over all processes."""
        return value


ALONE = Team()
"""The team of one process."""
