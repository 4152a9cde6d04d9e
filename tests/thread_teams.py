"""Teams whose members are threads of one process."""

import copy
from threading import Barrier, Thread

from dalle_ppo.base.team import ALONE, Team


class ThreadTeam(Team):
    """Threads that hand each other copies of their values."""

    def __init__(self, rank: int, slots: list, barrier: Barrier):
        super().__init__(rank, len(slots))
        self.slots, self.barrier = slots, barrier

    def gather(self, value):
        self.slots[self.rank] = copy.deepcopy(value)
        self.barrier.wait(60)
        received = copy.deepcopy(self.slots)
        self.barrier.wait(60)
        return received


def thread_teams(size: int) -> list[Team]:
    slots, barrier = [None] * size, Barrier(size)
    return [ThreadTeam(rank, slots, barrier) for rank in range(size)] if size > 1 else [ALONE]


def together(teams: list[Team], function) -> list:
    """What `function(rank)` returns or raises for every member, at the same time."""
    results = [None] * len(teams)

    def work(rank: int) -> None:
        try:
            results[rank] = function(rank)
        except ValueError as error:
            results[rank] = error
        except BaseException:
            teams[rank].barrier.abort()
            raise

    threads = [Thread(target=work, args=(rank,)) for rank in range(len(teams))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
