"""The section `reward`: which terms are summed, and what happens when one of them fails."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from dalle_ppo.config.term import TermConfig, TermSettings, read_terms


def default_terms() -> list[dict[str, Any]]:
    """A penalty for unsafe images; the others are rewarded for matching their caption."""
    return [
        {
            "name": "nsfw",
            "detector": "builtin",
            "unsafe_threshold": 0.4,
            "unsure_threshold": 0.1,
            "unsafe_penalty": -30.0,
            "unsure_penalty": -10.0,
            "clean_threshold": 0.01,
            "clean_bonus": 0.0,
        },
        {"name": "clip_similarity", "weight": 20.0, "only_if": "nsfw <= 0.1"},
    ]


@dataclass(frozen=True)
class RewardConfig:
    """How images are scored: by a weighted sum of terms, each with an optional gate."""

    terms: list[dict[str, Any]] = field(default_factory=default_terms)
    """List of terms, each with a name, a weight (1 unless given), an optional only_if, and the term's own
    settings. The name is that of a file in `dalle_ppo/rewards`, or your own function as
    "my_module:my_function". With only_if: "nsfw <= 0.1", a term counts only for images where that holds;
    only_if compares the first part of a term, or any part by its name, with <, <=, > or >=.
    `--reward.terms+` adds a term to the list."""
    bad_result: Literal["stop", "skip"] = "stop"
    """What happens when a reward raises, is not finite or has the wrong shape. "stop" ends the run with a
    checkpoint from before the batch; "skip" leaves the batch out, with a warning and a count in
    `batches_left_out`, and stops at the third bad batch in a row. Use skip for rewards that fail now and
    then."""
    normalise: Literal["per_term"] | None = None
    """"per_term" divides each term by its own running standard deviation, taken where its gate is open,
    before the terms are weighted and added for training. Weights then say how much each term counts,
    whatever its unit. null adds them as they are. `reward_mean`, gates and evaluations keep the plain sum.
    Use per_term for terms whose units differ much."""

    def __post_init__(self) -> None:
        # Spelled out, so that the settings a run saves do not depend on later defaults.
        spelled_out = [term.to_mapping() for term in read_terms(self.terms)]
        object.__setattr__(self, "terms", spelled_out)

    @cached_property
    def parsed(self) -> list[TermConfig]:
        """The terms as checked records."""
        return read_terms(self.terms)

    def settings_of(self, name: str) -> TermSettings | None:
        """The settings of the first term with that name; None if there is none."""
        return next((term.own for term in self.parsed if term.name == name), None)
