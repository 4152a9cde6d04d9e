"""Who labels in an alignment: the simulated rater, a model behind an endpoint, or people on the page."""

import argparse
from collections.abc import Callable, Sequence

from dalle_ppo.build.models import find_world
from dalle_ppo.config.settings import Config
from dalle_ppo.preferences.answer import PictureSet
from dalle_ppo.preferences.asking.budget import Limits
from dalle_ppo.preferences.store import Store

LabelStep = Callable[[Store, Sequence[PictureSet], int], object]


class FixedSets:
    """Sets that are drawn already, for who wants a drawer.

    Args:
        store: has their pictures.
        sets: in the order in which they are shown.
    """

    def __init__(self, store: Store, sets: Sequence[PictureSet]):
        self.store, self._sets = store, tuple(sets)

    def set_id(self, number: int) -> str:
        """The id of a set.

        Raises:
            ValueError: there are not that many.
        """
        return self.draw(number).id

    def draw(self, number: int) -> PictureSet:
        """A set.

        Raises:
            ValueError: there are not that many.
        """
        if number >= len(self._sets):
            raise ValueError(f"all {len(self._sets)} sets of this round are done; end the page with Ctrl-C")
        return self._sets[number]


def unanswered(store: Store, sets: Sequence[PictureSet]) -> list[PictureSet]:
    """The sets that nobody has answered or skipped; one whose pictures are all the same is never shown."""
    done = {answer.set_id for answer in store.answers()}
    return [shown for shown in sets if shown.id not in done and shown.differs]


def simulated(config: Config, seed: int) -> LabelStep:
    """Labels as the built-in world's simulated rater does, and prints how far it agrees with the judge.

    Raises:
        ValueError: the model does not belong to the built-in world.
    """
    from dalle_ppo.build.simulated import open_rater, rater_against_judge, read_pictures, simulated_answers

    world = find_world(config.model.path)
    rater = open_rater(world, seed)

    def label(store: Store, sets: Sequence[PictureSet], number: int) -> None:
        simulated_answers(store, sets, rater, number)
        images = read_pictures(store, [key for shown in sets for key in shown.images])
        print(rater_against_judge(world, rater, images).line(), flush=True)

    return label


def endpoint(url: str, model: str, limits: Limits) -> LabelStep:
    """Labels with a model behind an OpenAI-compatible endpoint; each set is asked twice.

    Raises:
        ValueError: the address or the model is invalid, or `openai` is missing.
    """
    from dalle_ppo.preferences.asking.budget import Budget
    from dalle_ppo.preferences.asking.endpoint import Endpoint, EndpointOptions

    asked = Endpoint(EndpointOptions(url, model), Budget(limits))

    def label(store: Store, sets: Sequence[PictureSet], number: int) -> None:
        from dalle_ppo.preferences.asking.loop import Questions, Rater
        from dalle_ppo.preferences.asking.prompt import read_prompt

        questions = Questions(store, Rater(model, model, read_prompt(store, None)), asked)
        for progress in questions.ask_about([(shown.id, lambda shown=shown: shown) for shown in sets]):
            if progress.stopped:
                raise ValueError(f"round {number}: {progress.stopped}; start the same command again to go on")

    return label


def page(port: int, num_images: int) -> LabelStep:
    """Opens the page until each set has an answer; ended before, the command ends too."""

    def label(store: Store, sets: Sequence[PictureSet], number: int) -> None:
        still = unanswered(store, sets)
        if still:
            from dalle_ppo.preferences.page.command import serve

            # The page counts the answers of all rounds.
            ranked = sum(a.kind == "ranking" and a.source == "person" for a in store.answers())
            goal = ranked + len(still)
            args = argparse.Namespace(num_images=num_images, port=port, repeat=0.0, goal=goal)
            print(f"round {number}: {len(sets)} sets; answer them all, then end the page with Ctrl-C")
            serve(args, store, lambda: FixedSets(store, sets))
        missing = len(unanswered(store, sets))
        if missing:
            raise ValueError(
                f"round {number}: {missing} of {len(sets)} sets have no answer yet; start the same command "
                "again"
            )

    return label
