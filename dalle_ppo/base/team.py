"""The processes that train one model together; a single process is a team of one.

Everything that a team does is made of `gather`, so one process needs no torch.distributed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

from dalle_ppo.base.halving import OutOfMemory

if TYPE_CHECKING:
    from torch import Tensor

LAUNCHERS = (("RANK", "WORLD_SIZE"), ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"))
"""Where torchrun (which `accelerate launch` uses too) and mpirun tell a process its number and theirs."""

Result = TypeVar("Result")


def as_it_is(_: str, tensor: "Tensor") -> "Tensor":
    """All of a tensor."""
    return tensor


class Team:
    """All that captions, sampling, rewards, optimisers and writers need to know about processes.

    All processes must call the same methods in the same order. This class is the team of one.

    Args:
        rank: number of this process, counting from 0.
        size: number of processes.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, by rank."""
        return [value]

    def mean(self, value: float) -> float:
        """The mean over all processes."""
        return sum(self.gather(value)) / self.size

    def on_first(self, function: Callable[[], Result]) -> Result:
        """What the first process's function returns, in all processes; the others do not call theirs.

        Raises:
            ValueError: the function raised it; all processes do.
        """
        if self.size == 1:
            return function()
        result, error = _outcome(function) if self.is_first else (None, None)
        result, error = self.gather((result, error))[0]
        if error is not None:
            raise error.again()
        return result

    def everywhere(self, function: Callable[[], Result]) -> Result:
        """What this process's function returns, if no process's raises.

        Raises:
            ValueError: a function raised it; all processes raise that of the first one.
        """
        if self.size == 1:
            return function()
        result, error = _outcome(function)
        errors = [one for one in self.gather(error) if one is not None]
        if errors:
            raise errors[0].again()
        return result

    def share(self, count: int) -> slice:
        """Which of `count` rows are this process's; every process does all of them if they are too few."""
        if count < self.size:
            return slice(0, count)
        return slice(*list(pairwise(self.bounds(count)))[self.rank])

    def bounds(self, count: int) -> list[int]:
        """Where the shares of `count` rows begin, and where the last one ends."""
        return [count * rank // self.size for rank in range(self.size + 1)]

    def join(self, part: "Tensor", count: int) -> "Tensor":
        """The rows of all processes in order.

        Args:
            part: the rows of this process's `share(count)`.
            count: rows in all.
        """
        import torch

        return part if self.size == 1 or count < self.size else torch.cat(self.gather(part))

    def add_up(self, tensors: Sequence["Tensor"]) -> None:
        """Replaces each tensor by its sum over all processes, in place, by bit the same in all of them."""
        if self.size > 1:
            for tensor in tensors:
                tensor.copy_(sum(self.gather(tensor)))

    def send_tensors(
        self, tensors: dict[str, "Tensor"] | None, kept: Callable[[str, "Tensor"], "Tensor"] = as_it_is
    ) -> dict[str, "Tensor"]:
        """The tensors of the first process, in all processes.

        Args:
            tensors: by name; what processes but the first give is ignored.
            kept: what the others keep of each as it arrives, by its name.
        """
        sent = self.gather(tensors)[0]
        return sent if self.is_first else {name: kept(name, tensor) for name, tensor in sent.items()}

    def end_if_lost(self, error: BaseException) -> None:
        """Ends this process, with one line of the first one, if an error comes from the loss of another."""

    def close(self) -> None:
        """Ends the working together; processes may go on by themselves."""


ALONE = Team()
"""A team of one process."""


@dataclass(frozen=True)
class _Failure:
    """An error that a user can mend, on its way to other processes."""

    text: str
    of_memory: bool

    def again(self) -> ValueError:
        """The error, to be raised."""
        return OutOfMemory(self.text) if self.of_memory else ValueError(self.text)


def _outcome(function: Callable[[], Result]) -> tuple[Result | None, _Failure | None]:
    """What a function returned, and its error if a user can mend that."""
    try:
        return function(), None
    except (ValueError, OSError) as error:
        return None, _Failure(str(error), isinstance(error, OutOfMemory))


def launched(environment: Mapping[str, str]) -> tuple[int, int]:
    """This process's number and the number of processes, as a launcher has set them; (0, 1) without one."""
    for rank, size in LAUNCHERS:
        numbers = environment.get(rank, ""), environment.get(size, "")
        if all(number.isdecimal() for number in numbers):
            return int(numbers[0]), int(numbers[1])
    return 0, 1


def check_same(team: Team, facts: Mapping[str, object], advice: str) -> None:
    """Refuses processes that do not agree.

    Args:
        team: the processes.
        facts: what must be the same in all of them, by name; small.
        advice: the way out.

    Raises:
        ValueError: they differ; all processes raise the same one.
    """
    first, *others = team.gather(dict(facts))
    for rank, other in enumerate(others, start=1):
        for name in sorted({*first, *other}):
            if first.get(name) != other.get(name):
                raise ValueError(
                    f"process {rank} has {name} {other.get(name)}, but process 0 has {first.get(name)}; "
                    f"{advice}"
                )
