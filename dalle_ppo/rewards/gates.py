"""Gates of reward terms, such as "nsfw <= 0.1": where one is closed, its term adds nothing."""

import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

OPERATORS: dict[str, Callable] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_GATE = re.compile(r"\s*(\S+?)\s*(<=|>=|<|>)\s*(\S+)\s*")


@dataclass(frozen=True)
class Gate:
    """A condition on one part of the reward.

    Args:
        part: the part to compare; as written, it may also be the name of a term.
        comparison: a key of `OPERATORS`.
        bound: what the part is compared with.
    """

    part: str
    comparison: str
    bound: float

    def is_open(self, values: "Tensor") -> "Tensor":
        """Whether the condition holds, bool [B], for the values [B] of the part."""
        return OPERATORS[self.comparison](values, self.bound)


def parse_gate(text: str) -> Gate:
    """Reads "nsfw <= 0.1".

    Raises:
        ValueError: the text is something else; the message is meant to follow the name of the setting.
    """
    match = _GATE.fullmatch(text)
    try:
        bound = float(match[3]) if match else math.nan
    except ValueError:
        bound = math.nan
    if not math.isfinite(bound):
        raise ValueError(
            f'is {text!r}; write it as "nsfw <= 0.1": a term or part, one of < <= > >=, and a number'
        )
    return Gate(match[1], match[2], bound)
