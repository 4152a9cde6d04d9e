"""What the page tells a rater about the work: progress, pace, agreement with oneself, a habit."""

from collections.abc import Sequence
from dataclasses import dataclass

from dalle_ppo.preferences.agreement import habits
from dalle_ppo.preferences.answer import Answer

RECENT = 50
"""Answers from which the pace is measured."""
ENOUGH = 12
"""Answers before a habit is spoken of."""


@dataclass(frozen=True)
class Figures:
    """Numbers for the head of the page.

    Args:
        mine: sets that this rater has ranked.
        skipped: sets that this rater has skipped.
        total: sets that all people have ranked.
        goal: how many are wanted.
        per_minute: pace of the newest answers, without pauses; None without answers.
        repeats: pairs of pictures that this rater has judged more than once.
        alike: how many of them got the same answer each time.
        warning: a line about a habit that spoils the labels, or "".
    """

    mine: int
    skipped: int
    total: int
    goal: int
    per_minute: float | None
    repeats: int
    alike: int
    warning: str


def figures(answers: Sequence[Answer], rater: str, goal: int) -> Figures:
    """The numbers of one rater.

    Args:
        answers: of the store, without those taken back.
        rater: the name.
        goal: how many answers are wanted in all.
    """
    people = [answer for answer in answers if answer.source == "person"]
    mine = [answer for answer in people if answer.rater == rater]
    ranked = [answer for answer in mine if answer.kind == "ranking"]
    recent = ranked[-RECENT:]
    seconds = sum(answer.seconds for answer in recent)
    repeats, alike, warning = 0, 0, ""
    for habit in habits(ranked):
        repeats, alike = habit.repeats, round(habit.repeats * (habit.consistent or 0))
        if habit.biased and habit.decided >= ENOUGH:
            warning = (
                f"the first picture was best in {habit.first} of {habit.decided} answers, and chance gives "
                f"{habit.expected:.0f}; do you look at all of them?"
            )
    return Figures(
        mine=len(ranked),
        skipped=sum(answer.kind == "skip" for answer in mine),
        total=sum(answer.kind == "ranking" for answer in people),
        goal=goal,
        per_minute=60 * len(recent) / seconds if seconds else None,
        repeats=repeats,
        alike=alike,
        warning=warning,
    )
