"""The processes that train one model together; a single process is a team of one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LAUNCHERS = (("RANK", "WORLD_SIZE"), ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"))
"""Where torchrun (which `accelerate launch` uses too) and mpirun tell a process its number and theirs."""


@dataclass(frozen=True)
class Team:
    """All that captions, credit, optimiser and writers need to know about processes.

    Args:
        rank: number of this process, counting from 0.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    def __post_init__(self) -> None:
        assert (self.rank, self.size) == (0, 1), "a team of several processes is not supported yet"

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
"""A team of one process."""


def launched(environment: Mapping[str, str]) -> tuple[int, int]:
    """This process's number and the number of processes, as a launcher has set them; (0, 1) without one."""
    for rank, size in LAUNCHERS:
        numbers = environment.get(rank, ""), environment.get(size, "")
        if all(number.isdecimal() for number in numbers):
            return int(numbers[0]), int(numbers[1])
    return 0, 1
