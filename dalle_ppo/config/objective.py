"""The settings of objectives, found by name in `config/objectives`.

A module NAME there declares `Settings`, a frozen dataclass, and `DEFAULTS`, its own defaults for general
settings, by dotted name. It may declare `check(config)`, which refuses general settings that do not suit the
objective. The settings of objective NAME form section NAME.
"""

import difflib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from dalle_ppo.config import objectives as folder


@dataclass(frozen=True)
class Objective:
    """The settings of one objective.

    Args:
        name: as in `--objective`.
        settings: the dataclass of its own section.
        defaults: its own defaults for general settings, by dotted name.
        check: takes all settings and raises ValueError if they do not suit the objective.
    """

    name: str
    settings: type
    defaults: dict[str, object]
    check: Callable[[object], None]


def objective_names() -> list[str]:
    """The names of all objectives."""
    return sorted(module.name for module in pkgutil.iter_modules(folder.__path__))


def find_objective(name: str) -> Objective:
    """The objective with that name.

    Raises:
        ValueError: there is none; the message offers the nearest name.
    """
    names = objective_names()
    if name not in names:
        near = difflib.get_close_matches(str(name), names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it must be one of {', '.join(names)}"
        raise ValueError(f"objective is {name}; {hint}")
    module = import_module(f"{folder.__name__}.{name}")
    return Objective(name, module.Settings, module.DEFAULTS, getattr(module, "check", _suits))


def _suits(config: object) -> None:
    """Accepts all settings: the check of an objective that declares none."""
