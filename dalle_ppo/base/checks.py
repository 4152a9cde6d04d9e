"""Rules for single settings, each with a one-line message for a value that breaks it."""

import math
from collections.abc import Callable
from typing import Any


def at_least_one(config: Any, prefix: str, *names: str) -> None:
    """Refuses values below 1; None passes."""
    _refuse(config, prefix, names, lambda value: value is None or value >= 1, "be at least 1")


def not_negative(config: Any, prefix: str, *names: str) -> None:
    _refuse(config, prefix, names, lambda value: 0 <= value < math.inf, "be 0 or a positive number")


def positive(config: Any, prefix: str, *names: str) -> None:
    """Refuses values that are not above 0; None passes, because it switches a setting off."""
    _refuse(config, prefix, names, lambda value: value is None or 0 < value < math.inf, "be above 0")


def not_empty(config: Any, prefix: str, *names: str) -> None:
    """Refuses empty mappings, which would silently count as none; None passes."""
    _refuse(config, prefix, names, lambda value: value is None or bool(value), "name something, or be null")


def _refuse(config: Any, prefix: str, names: tuple[str, ...], fits: Callable[[Any], bool], rule: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not fits(value):
            dotted = f"{prefix}.{name}" if prefix else name
            raise ValueError(f"{dotted} is {value}; it must {rule}")
