"""`prompts:NAME`: prompt sets from papers, as plain functions."""

from collections.abc import Callable
from itertools import product

from dalle_ppo.captions.shards import TableShard
from dalle_ppo.captions.source import CaptionRequest, CaptionSource

# Source: https://arxiv.org/abs/2305.13301 (DDPO), appendix: 45 common animals and three activities.
# fmt: off
ANIMALS = (
    "cat", "dog", "horse", "monkey", "rabbit", "zebra", "spider", "bird", "sheep", "deer", "cow",
    "goat", "lion", "tiger", "bear", "raccoon", "fox", "wolf", "lizard", "beetle", "ant",
    "butterfly", "fish", "shark", "whale", "dolphin", "squirrel", "mouse", "rat", "snake", "turtle",
    "frog", "chicken", "duck", "goose", "bee", "pig", "turkey", "fly", "llama", "camel", "bat",
    "gorilla", "hedgehog", "kangaroo",
)
# fmt: on
ACTIVITIES = ("washing the dishes", "riding a bike", "playing chess")
NUMBERS = ("one", "two", "three", "four", "five", "six")
_PLURALS = {
    "sheep": "sheep",
    "deer": "deer",
    "wolf": "wolves",
    "mouse": "mice",
    "goose": "geese",
    "fish": "fish",
    "butterfly": "butterflies",
    "fox": "foxes",
    "fly": "flies",
}


def load(name: str, request: CaptionRequest) -> CaptionSource:
    """Captions from a prompt set.

    Args:
        name: name of the set, a key of `PROMPT_SETS`.
        request: what is asked of the source.

    Raises:
        ValueError: there is no such set, or columns are asked for.
    """
    source = f"prompts:{name}"
    request.refuse_columns(source)
    return request.draw_from([TableShard(source, prompt_set(name))])


def simple_animals() -> list[str]:
    """Each of the 45 animals: `a cat`, `an ant`."""
    return [with_article(animal) for animal in ANIMALS]


def animal_activities() -> list[str]:
    """Every animal doing every activity: `a cat playing chess`."""
    return [f"{with_article(animal)} {activity}" for animal, activity in product(ANIMALS, ACTIVITIES)]


def counting() -> list[str]:
    """One to six of every animal: `three cats`."""
    return [
        f"{number} {animal if number == 'one' else plural(animal)}"
        for animal, number in product(ANIMALS, NUMBERS)
    ]


PROMPT_SETS: dict[str, Callable[[], list[str]]] = {
    "simple_animals": simple_animals,
    "animal_activities": animal_activities,
    "counting": counting,
}


def prompt_set(name: str) -> list[str]:
    """The prompts of a named set; the ValueError for an unknown name lists the names."""
    if name not in PROMPT_SETS:
        raise ValueError(f"captions: there is no prompt set {name!r}; use one of {', '.join(PROMPT_SETS)}")
    return PROMPT_SETS[name]()


def with_article(noun: str) -> str:
    """`a` or `an` before a noun, by its first letter."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def plural(noun: str) -> str:
    """The plural of one of the animals."""
    return _PLURALS.get(noun, noun + "s")
