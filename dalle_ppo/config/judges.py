"""Reads and checks the entries of `evaluation.judges`: reward terms that measure and never train."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from dalle_ppo.config.term import TermConfig, read_terms

Entry = str | Mapping[str, Any]


def read_judges(entries: Sequence[Entry]) -> list[TermConfig]:
    """The judges as checked terms; an entry is a name, or a mapping as in `reward.terms`.

    Raises:
        ValueError: a judge or a setting is invalid, one is named twice, or one has a gate.
    """
    if not entries:
        return []
    named = [{"name": entry} if isinstance(entry, str) else entry for entry in entries]
    try:
        judges = read_terms(named)
    except ValueError as error:
        raise ValueError(str(error).replace("reward.terms", "evaluation.judges")) from None
    for number, judge in enumerate(judges):
        if judge.gate is not None:
            raise ValueError(
                f"evaluation.judges: only_if of {judge.label} is {judge.common.only_if!r}; a judge looks at "
                "every image, so leave only_if out"
            )
        if judge.common.weight == 0:
            raise ValueError(
                f"evaluation.judges: weight of {judge.label} is 0; it must be positive if high values are "
                "good, as by default, and negative if they are bad"
            )
        if any(same_measure(judge, other) for other in judges[:number]):
            raise ValueError(
                f"evaluation.judges: {judge.name} is named twice with the same settings; leave one out"
            )
    return judges


def check_judges(judges: Sequence[TermConfig], terms: Sequence[TermConfig]) -> None:
    """Refuses a judge that the reward trains on: it could not tell a gain from a fooled reward.

    Args:
        judges: those of `evaluation.judges`.
        terms: those of `reward.terms`.

    Raises:
        ValueError: a judge measures the same as a term of the reward.
    """
    for judge in judges:
        term = next((term for term in terms if same_measure(judge, term)), None)
        if term is not None:
            raise ValueError(
                f"evaluation.judges: {judge.label} measures the same as reward term {term.label}, which is "
                f"trained on; name another judge, {_way_out(judge)}"
            )


def same_measure(first: TermConfig, second: TermConfig) -> bool:
    """Whether two terms look at images through the same eyes.

    They do if they have the same name and settings. Thresholds of a detector do not change the detector.
    """
    if first.name != second.name:
        return False
    loaded = first.own.detectors or [f.name for f in fields(first.own)]
    return all(getattr(first.own, name) == getattr(second.own, name) for name in loaded)


def _way_out(judge: TermConfig) -> str:
    """What else the user can do about a judge that is in the reward."""
    if judge.own.detectors:
        return f"give it another {judge.own.detectors[0]}, or take the term out of reward.terms"
    return "or take the term out of reward.terms"
