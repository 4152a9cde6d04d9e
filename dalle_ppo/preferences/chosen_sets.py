"""Shows four of sixteen sets: the first, whatever it shows, and three that are chosen.

The first ones are a fair sample: what all members of a reward model wrongly agree about is still asked, and
a reward model can be checked on them. What was chosen is recorded, so that a command that is started again
shows the same sets, whatever has been learned since.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Protocol

from dalle_ppo.base.append import RowFile
from dalle_ppo.preferences.answer import PictureSet
from dalle_ppo.preferences.store import Store

CANDIDATES, TAKEN = 16, 4
"""Sets that are drawn together, and how many of them are shown."""
CHOICES_FILE = "choices.jsonl"

Choose = Callable[[Sequence[PictureSet]], Sequence[int]]
"""Sorts sets: places in the given list, those that are most worth an answer first."""


class DrawsMany(Protocol):
    """What is needed of a drawer; a set's number alone says what it shows."""

    store: Store

    def set_id(self, number: int) -> str:
        """The id of a set, without drawing it."""

    def draw_many(self, numbers: Sequence[int]) -> list[PictureSet]:
        """Draws sets into the store."""


@dataclass(frozen=True)
class Choice:
    """What was chosen of sets drawn together; a row of `choices.jsonl`.

    Args:
        first: id of the first of them, which depends on the weights, the noise and its number.
        places: of those that are shown, from 0 to `CANDIDATES` - 1.
        by: hash of the answers that the reward model had learned from.
    """

    first: str
    places: tuple[int, ...]
    by: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "places", tuple(self.places))
        if len(self.places) != TAKEN or not set(self.places) <= set(range(CANDIDATES)):
            raise ValueError(f"places is {self.places}; it must hold {TAKEN} of {CANDIDATES}")


class ChosenSets:
    """A drawer of the sets that are chosen among those of another.

    Args:
        drawer: draws the candidates.
        choose: sorts them.
        by: hash of the answers that the reward model behind `choose` has learned from.
    """

    def __init__(self, drawer: DrawsMany, choose: Choose, by: str):
        self.store, self._drawer, self._choose, self._by = drawer.store, drawer, choose, by
        self._rows = RowFile(self.store.folder / CHOICES_FILE, Choice)
        self._places: dict[int, tuple[int, ...]] = {}
        self._drawn: dict[int, PictureSet] = {}

    def set_id(self, number: int) -> str:
        """The id of a set; the first of four has its candidates drawn, if they were never chosen from."""
        return self._drawer.set_id(self._candidate(number))

    def draw(self, number: int) -> PictureSet:
        """Draws a set; one that was picked says so."""
        candidate = self._candidate(number)
        if candidate not in self._drawn:
            (self._drawn[candidate],) = self._drawer.draw_many([candidate])
        return replace(self._drawn[candidate], chosen=number % TAKEN > 0)

    def draw_many(self, numbers: Sequence[int]) -> list[PictureSet]:
        """Draws sets one by one."""
        return [self.draw(number) for number in numbers]

    def _candidate(self, number: int) -> int:
        """The number that a set has among the drawer's."""
        group, place = divmod(number, TAKEN)
        if group not in self._places:
            self._places[group] = self._recorded(group) or self._chosen(group)
        return group * CANDIDATES + self._places[group][place]

    def _recorded(self, group: int) -> tuple[int, ...] | None:
        """What was chosen before; of two processes that chose at once, the first one counts."""
        first = self._drawer.set_id(group * CANDIDATES)
        return next((row.places for row in self._rows.read() if row.first == first), None)

    def _chosen(self, group: int) -> tuple[int, ...]:
        numbers = range(group * CANDIDATES, (group + 1) * CANDIDATES)
        sets = self._drawer.draw_many(numbers)
        order = list(self._choose(sets[1:]))
        if sorted(order) != list(range(CANDIDATES - 1)):
            raise ValueError(f"the choice of sets gave the order {order}; it must hold each place once")
        places = (0, *(place + 1 for place in order[: TAKEN - 1]))
        self._rows.append([asdict(Choice(sets[0].id, places, self._by))])
        places = self._recorded(group) or places
        self._drawn |= {numbers[place]: sets[place] for place in places}
        return places
