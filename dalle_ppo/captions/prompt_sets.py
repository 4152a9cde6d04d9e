"""Prompt sets the field uses, as plain functions."""

from collections.abc import Callable, Sequence
from itertools import product

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


def template_grid(template: str, **values: Sequence[str]) -> list[str]:
    """Fill a template with every combination of values.

    Args:
        template: such as `a {color} {animal}`.
        values: a name in braces to the words that stand for it; the last name varies fastest.

    Raises:
        ValueError: the template has a name without values.
    """
    try:
        return [
            template.format(**dict(zip(values, words, strict=True))) for words in product(*values.values())
        ]
    except (KeyError, IndexError) as error:
        raise ValueError(f"template: {template!r} has no values for {error}; give a list of words") from error


PROMPT_SETS: dict[str, Callable[[], list[str]]] = {
    "simple_animals": simple_animals,
    "animal_activities": animal_activities,
    "counting": counting,
}


def prompt_set(name: str) -> list[str]:
    """The prompts of a named set; ValueError lists the names."""
    if name not in PROMPT_SETS:
        raise ValueError(f"captions: there is no prompt set {name!r}; there are {', '.join(PROMPT_SETS)}")
    return PROMPT_SETS[name]()


def with_article(noun: str) -> str:
    """`a` or `an` before a noun, by its first letter."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def plural(noun: str) -> str:
    """The plural of one of the animals."""
    return _PLURALS.get(noun, noun + "s")
