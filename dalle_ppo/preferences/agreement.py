"""How far raters agree, with each other and with themselves, and whether a place is preferred."""

import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from dalle_ppo.evaluation.intervals import clopper_pearson
from dalle_ppo.preferences.answer import Answer

LABELS = (-1, 0, 1)
"""The second picture of a pair is better, a tie, the first one is."""
PEOPLE, MODELS = "all people", "all models"
Pair = tuple[str, str]
Votes = dict[Pair, dict[str, int]]


@dataclass(frozen=True)
class Agreement:
    """How far two raters agree on the pairs that both have judged.

    Args:
        raters: their names.
        pairs: number of pairs.
        equal: share of equal answers.
        kappa: Cohen's kappa; None where it is undefined, such as when both always say the same.
    """

    raters: tuple[str, str]
    pairs: int
    equal: float
    kappa: float | None


@dataclass(frozen=True)
class Habits:
    """How one rater answers.

    Args:
        rater: the name.
        repeats: pairs judged more than once.
        consistent: share of them with the same answer each time; None without repeats.
        decided: rankings with a single best picture.
        first: how many of them put the picture shown first above all others.
        expected: how many would, without a habit.
    """

    rater: str
    repeats: int
    consistent: float | None
    decided: int
    first: int
    expected: float

    @property
    def biased(self) -> bool:
        """Whether the first place wins too often or too rarely for chance, with 95 % confidence."""
        if not self.decided:
            return False
        low, high = clopper_pearson(self.first, self.decided)
        return not low <= self.expected / self.decided <= high


def votes(answers: Iterable[Answer], groups: bool = False) -> Votes:
    """What each rater says about each pair of pictures; repeated answers are averaged.

    Args:
        answers: rankings count, others are ignored.
        groups: take all people as one rater, and all models as another.

    Returns:
        For each pair of keys, in order of their hashes: by rater, one of `LABELS`.
    """
    found: dict[Pair, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for answer in answers:
        rater = answer.rater
        if groups:
            rater = MODELS if answer.source == "model" else PEOPLE
        for pair, label in _labels(answer):
            found[pair][rater].append(label)
    return {
        pair: {rater: _sign(sum(labels)) for rater, labels in raters.items()}
        for pair, raters in found.items()
    }


def agreements(found: Votes) -> list[Agreement]:
    """Every two raters that have judged common pairs.

    Source: Cohen (1960), https://doi.org/10.1177/001316446002000104, by scikit-learn.
    """
    raters = sorted({rater for by_rater in found.values() for rater in by_rater})
    result = []
    for one, other in combinations(raters, 2):
        common = [(by[one], by[other]) for by in found.values() if one in by and other in by]
        if common:
            first, second = zip(*common, strict=True)
            equal = sum(a == b for a, b in common) / len(common)
            result.append(Agreement((one, other), len(common), equal, _kappa(first, second)))
    return result


def alpha(found: Votes) -> float | None:
    """Krippendorff's alpha over all raters, for nominal labels; None where it is undefined.

    Source: Krippendorff (2011), https://repository.upenn.edu/handle/20.500.14332/2089, by `krippendorff`.
    """
    import numpy as np

    krippendorff = _package("krippendorff")
    raters = sorted({rater for by_rater in found.values() for rater in by_rater})
    table = np.array([[by.get(rater, np.nan) for by in found.values()] for rater in raters], dtype=float)
    shared = [len(by) > 1 for by in found.values()]
    values = table[:, shared][~np.isnan(table[:, shared])] if any(shared) else np.array([])
    if len(np.unique(values)) < 2:  # nobody has judged a pair of somebody else, or all say the same
        return None
    return float(krippendorff.alpha(table, value_domain=list(LABELS), level_of_measurement="nominal"))


def habits(answers: Iterable[Answer]) -> list[Habits]:
    """Each rater's consistency and liking for the first place."""
    by_rater: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        if answer.kind == "ranking":
            by_rater[answer.rater].append(answer)
    return [_habits(rater, given) for rater, given in sorted(by_rater.items())]


def agreement_lines(answers: Sequence[Answer]) -> list[str]:
    """For people: agreement and habits of all raters of a store."""
    lines = []
    for habit in habits(answers):
        lines.append(_habit_line(habit))
    found = votes(answers)
    between = agreements(found)
    if len({answer.source == "model" for answer in answers if answer.kind == "ranking"}) == 2:
        between += agreements(votes(answers, groups=True))
    for pair in between:
        kappa = "undefined" if pair.kappa is None else f"{pair.kappa:.2f}"
        lines.append(
            f"{pair.raters[0]} and {pair.raters[1]}: {pair.equal:.0%} equal on {pair.pairs} pairs, Cohen's "
            f"kappa {kappa}"
        )
    if between:
        value = alpha(found)
        lines.append(
            "Krippendorff's alpha of all raters: " + ("undefined" if value is None else f"{value:.2f}")
        )
    return lines


def _habit_line(habit: Habits) -> str:
    line = f"{habit.rater}: "
    if habit.consistent is not None:
        line += f"{habit.consistent:.0%} of {habit.repeats} repeated pairs answered alike; "
    line += f"the picture shown first is best in {habit.first} of {habit.decided} answers"
    line += f" ({habit.expected:.0f} by chance)"
    return line + (": the place decides, not only the picture" if habit.biased else "")


def _habits(rater: str, answers: list[Answer]) -> Habits:
    labels: dict[Pair, list[int]] = defaultdict(list)
    decided = first = 0
    expected = 0.0
    for answer in answers:
        for pair, label in _labels(answer):
            labels[pair].append(label)
        if answer.ranks.count(min(answer.ranks)) == 1:
            decided, expected = decided + 1, expected + 1 / len(answer.ranks)
            first += answer.ranks.index(min(answer.ranks)) == 0
    repeated = [given for given in labels.values() if len(given) > 1]
    consistent = sum(len(set(given)) == 1 for given in repeated) / len(repeated) if repeated else None
    return Habits(rater, len(repeated), consistent, decided, first, expected)


def _labels(answer: Answer) -> list[tuple[Pair, int]]:
    """Each pair of an answer's pictures, in order of their hashes, and what it says about it.

    Of a picture that was drawn twice in a set, the first place counts: it is not judged against itself.
    """
    ranked = sorted(dict(zip(answer.images[::-1], (answer.ranks or ())[::-1], strict=False)).items())
    return [((a, b), _sign(second - first)) for (a, first), (b, second) in combinations(ranked, 2)]


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def _kappa(first: Sequence[int], second: Sequence[int]) -> float | None:
    metrics = _package("sklearn.metrics")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about undefined values, which are told as such
        value = float(metrics.cohen_kappa_score(first, second, labels=list(LABELS)))
    return value if value == value else None


def _package(name: str):
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise ValueError(
            f"agreement between raters needs the package {name.split('.')[0]}; pip install -e '.[label]'"
        ) from None
