"""Asks a model about set after set, and fills the store."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

from dalle_ppo.base.append import RowFile
from dalle_ppo.preferences.answer import PictureSet
from dalle_ppo.preferences.asking.budget import Spent
from dalle_ppo.preferences.asking.prompt import orders, question
from dalle_ppo.preferences.asking.reply import Unread, read_reply
from dalle_ppo.preferences.store import Answer, Store

if TYPE_CHECKING:
    from dalle_ppo.preferences.drawing import Drawer

ORDERS = 2
"""How often a model is asked about a set."""
HOPELESS = 10
"""Replies in a row that cannot be read before the command gives up."""


class Asks(Protocol):
    """What the loop needs of an endpoint."""

    def ask(self, content: list[dict]) -> str:
        """The text of the reply."""


@dataclass(frozen=True)
class Rater:
    """Who answers.

    Args:
        name: under which answers are kept.
        model: the model that is asked.
        prompt: the text of the question.
    """

    name: str
    model: str
    prompt: str


@dataclass
class Progress:
    """What a call of the command has done.

    Args:
        answered: replies that were read.
        unread: replies that could not be read.
        skipped: questions answered before.
        gone: sets with a picture whose file is missing.
        alike: sets whose pictures are all the same, about which nothing is asked.
        stopped: why the end was not reached; "" if it was.
    """

    answered: int = 0
    unread: int = 0
    skipped: int = 0
    gone: int = 0
    alike: int = 0
    stopped: str = ""


def unread_file(store: Store) -> RowFile[Unread]:
    """The rows of replies that could not be read."""
    return RowFile(store.folder / "unread.jsonl", Unread)


class Questions:
    """The questions to one rater: which are open, and what comes of each.

    Args:
        store: where answers go, each as soon as it is there.
        rater: who answers.
        endpoint: where.
    """

    def __init__(self, store: Store, rater: Rater, endpoint: Asks):
        self._store, self._rater, self._endpoint = store, rater, endpoint
        self._digest = store.add_prompt(rater.prompt)
        self._unread = unread_file(store)
        self._unread_in_a_row = 0
        self._done = {
            (row.set_id, row.images)
            for row in [*store.answers(), *self._unread.read()]
            if (row.rater, row.prompt_sha256) == (rater.name, self._digest)
        }
        self.progress = Progress()

    def ask_about(self, sets: Iterable[tuple[str, Callable[[], PictureSet]]]) -> Iterator[Progress]:
        """Asks twice about each set, in opposite orders; what was answered before is not asked again.

        Args:
            sets: id of each set, and a function that returns it; called only if a question is open.

        Yields:
            The progress after each set.

        Raises:
            ValueError: the endpoint refuses, fails, or answers nothing that can be read.
        """
        answered = Counter(set_id for set_id, _ in self._done)
        for set_id, open_set in sets:
            if answered[set_id] >= ORDERS:
                self.progress.skipped += ORDERS
            else:
                try:
                    self._ask_open(open_set())
                except FileNotFoundError:
                    self.progress.gone += 1
                except Spent as spent:
                    self.progress.stopped = str(spent)
            yield self.progress
            if self.progress.stopped:
                return

    def _ask_open(self, picture_set: PictureSet) -> None:
        """Asks what is still open about a set."""
        if not picture_set.differs:
            self.progress.alike += 1
            return
        for images in orders(picture_set):
            if (picture_set.id, images) in self._done:
                self.progress.skipped += 1
                continue
            content = question(self._rater.prompt, picture_set.caption, images, self._store)
            started = time.monotonic()
            reply = self._endpoint.ask(content)
            self._keep(reply, picture_set, images, time.monotonic() - started)

    def _keep(self, reply: str, picture_set: PictureSet, images: tuple[str, ...], seconds: float) -> None:
        """Keeps a reply, readable or not.

        Raises:
            ValueError: many in a row were unreadable.
        """
        rater = self._rater
        facts = {
            "set_id": picture_set.id,
            "caption": picture_set.caption,
            "images": images,
            "rater": rater.name,
            "model": rater.model,
            "prompt_sha256": self._digest,
        }
        try:
            judgement = read_reply(reply, len(images))
        except ValueError as error:
            self._unread.append([asdict(Unread(**facts, reply=reply, why=str(error)))])
            self.progress.unread += 1
            self._unread_in_a_row += 1
            if self._unread_in_a_row >= HOPELESS:
                raise ValueError(
                    f"{HOPELESS} replies of {rater.model} in a row could not be read; the last "
                    f"{error}: {reply.strip()[:120]!r}. They are kept in {self._unread.path}. Does the model "
                    "read pictures? If it does, edit the prompt"
                ) from None
            return
        self._unread_in_a_row = 0
        self.progress.answered += 1
        self._store.append(
            Answer(
                **facts,
                kind="ranking",
                source="model",
                ranks=judgement.ranks,
                harm=judgement.harm,
                seconds=seconds,
            )
        )


def drawn_sets(drawer: "Drawer", number: int) -> Iterator[tuple[str, Callable[[], PictureSet]]]:
    """The first sets that a drawer draws, each drawn only when it is needed."""
    for n in range(number):
        yield drawer.set_id(n), partial(drawer.draw, n)


def labelled_sets(store: Store) -> list[tuple[str, Callable[[], PictureSet]]]:
    """The sets that people have answered, the oldest first.

    Raises:
        ValueError: there are none.
    """
    found: dict[str, PictureSet] = {}
    for answer in store.answers():
        if answer.source in ("person", "imported") and len(answer.images) > 1:
            found.setdefault(answer.set_id, PictureSet(answer.set_id, answer.caption, answer.images))
    if not found:
        raise ValueError(
            f"--labelled: nobody has answered anything in {store.folder} yet; label some sets first, or "
            "leave it out to draw new ones"
        )
    return [(name, partial(found.get, name)) for name in found]
