"""Reads and checks the entries of `reward.terms` and fills in defaults, before anything is loaded.

The settings of a term NAME are the record `Settings` in `config/terms/NAME.py`. A name with a colon is a
function of the user's own, which has no settings.
"""

import difflib
import importlib
import math
import pkgutil
import typing
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar

from dalle_ppo.config import terms as folder
from dalle_ppo.config.clip import ClipConfig
from dalle_ppo.config.kinds import kind
from dalle_ppo.rewards.gates import Gate, parse_gate


@dataclass(frozen=True)
class TermSettings:
    """The base of every term's settings: facts about the term that are needed before it is loaded."""

    parts: ClassVar[tuple[str, ...]] = ()
    """Names of the numbers per image that the term reports; a gate may compare them. If empty, the term
    reports its value under its own name."""
    reads_clip: ClassVar[bool] = False
    """Whether the term reads the run's CLIP. It may be a property where that depends on the settings."""
    detectors: ClassVar[tuple[str, ...]] = ()
    """Which of the term's settings name a detector or another head."""

    compares_batch: ClassVar[bool] = False
    """Whether a value depends on all images of a batch, also on those of other captions."""

    @property
    def own_clip(self) -> ClipConfig | None:
        """The settings of a CLIP that the term loads for itself; None if it loads none."""
        return None

    def images_needed(self, compared: bool) -> int:
        """How many images of each caption the term needs to teach anything.

        Args:
            compared: whether credit compares the images of one caption with each other.
        """
        return 1


@dataclass(frozen=True)
class Common:
    """The settings that every term has, besides its name."""

    weight: float = 1.0
    """The term's value is multiplied by this in the total."""
    only_if: str | None = None
    """The term counts only for images where this holds, such as "nsfw <= 0.1"; null is all images."""


@dataclass(frozen=True)
class TermConfig:
    """One entry of `reward.terms`, checked.

    Args:
        name: name of the term, or "my_module:my_function".
        label: the name, numbered from the second entry with the same name on, as in "nsfw#2".
        common: weight and gate as written.
        own: the term's own settings.
        parts: the names under which its numbers are reported; the first is what a gate on the term compares.
        gate: the parsed `only_if`, with the part that it compares; None without one.
    """

    name: str
    label: str
    common: Common
    own: TermSettings
    parts: tuple[str, ...]
    gate: Gate | None = None

    @property
    def is_function(self) -> bool:
        """Whether it is one of the user's own functions."""
        return ":" in self.name

    def to_mapping(self) -> dict[str, Any]:
        """The entry with every setting spelled out."""
        return {"name": self.name, **asdict(self.common), **asdict(self.own)}


def read_terms(entries: Sequence[Mapping[str, Any]]) -> list[TermConfig]:
    """Checks the entries of `reward.terms`.

    Raises:
        ValueError: a term, setting or gate is invalid; the message names it, the rule and the nearest name.
    """
    if not entries:
        raise ValueError(
            'reward.terms is empty; name at least one term, such as [{name: "my_module:my_function"}]'
        )
    counts: Counter[str] = Counter()
    found = []
    for entry in entries:
        name = entry.get("name") if isinstance(entry, Mapping) else None
        if not isinstance(name, str):
            raise ValueError(
                f"reward.terms: {entry} has no name; write an entry as {{name: ..., weight: ...}}"
            )
        counts[name] += 1
        found.append(_read_term(entry, counts[name]))
    return [replace(term, gate=_find_gate(term, found)) for term in found]


def spelled_out(entry: str | Mapping[str, Any]) -> dict[str, Any]:
    """An entry of `reward.terms` or `evaluation.judges` with every setting, as a run saves it.

    Raises:
        ValueError: a term or setting is invalid. Its gate is not looked at.
    """
    entry = {"name": entry} if isinstance(entry, str) else entry
    if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
        raise ValueError(f"{entry} has no name; write an entry as {{name: ..., weight: ...}}")
    return _read_term(entry, 1).to_mapping()


def term_names() -> list[str]:
    """The names of all terms."""
    return sorted(module.name for module in pkgutil.iter_modules(folder.__path__))


def settings_class(name: str) -> type[TermSettings]:
    """The record of a term's own settings.

    Raises:
        ValueError: there is no such term; the message offers the nearest name.
    """
    if ":" in name:
        return TermSettings
    if name not in term_names():
        near = difflib.get_close_matches(name, term_names(), n=1, cutoff=0.6)
        hint = f"did you mean {near[0]}?" if near else f"the terms are {', '.join(term_names())}"
        raise ValueError(
            f"reward.terms: {name} is neither a known term nor written as my_module:my_function; {hint}"
        )
    return importlib.import_module(f"{folder.__name__}.{name}").Settings


def _read_term(entry: Mapping[str, Any], number: int) -> TermConfig:
    name = entry["name"]
    own_class = settings_class(name)
    common_names, own_names = ([f.name for f in fields(record)] for record in (Common, own_class))
    given = {key: value for key, value in entry.items() if key != "name"}
    for key in given:
        if key not in (*common_names, *own_names):
            known = [*common_names, *own_names]
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.6)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(['name', *known])}"
            raise ValueError(f"reward.terms: {name} has no setting {key}; {hint}")
    common, own = (
        _parse(name, record, {key: value for key, value in given.items() if key in names})
        for record, names in ((Common, common_names), (own_class, own_names))
    )
    if not math.isfinite(common.weight):
        raise ValueError(f"reward.terms: weight of {name} is {common.weight}; it must be a finite number")
    suffix = f"#{number}" if number > 1 else ""
    parts = tuple(part + suffix for part in own.parts) or (name + suffix,)
    return TermConfig(name, name + suffix, common, own, parts)


def _parse(name: str, record: type, given: dict[str, Any]) -> Any:
    """A settings record from plain values, converted and checked like those of any other section."""
    from jsonargparse import ArgumentError, ArgumentParser

    if not fields(record):
        return record()
    types = typing.get_type_hints(record)
    for key, value in given.items():
        if value is None and "null" not in kind(types[key]):
            raise ValueError(f"reward.terms: {key} of {name} is null; it must be of type {kind(types[key])}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(record)
    try:
        return record(**vars(parser.instantiate(parser.parse_object(given))))
    except ArgumentError as error:
        raise ValueError(_explain(name, record, given, str(error))) from None
    except ValueError as error:
        raise ValueError(
            f"reward.terms: {str(error) if name in str(error) else f'{name}: {error}'}"
        ) from None


def _explain(name: str, record: type, given: Mapping[str, Any], message: str) -> str:
    """jsonargparse's error about a value of the wrong type, in our words."""
    types = typing.get_type_hints(record)
    key = next((key for key in given if f'"{key}"' in message), None)
    if key is None:
        return f"reward.terms: {name}: {' '.join(message.split())}"
    return f"reward.terms: {key} of {name} is {given[key]!r}; it must be of type {kind(types[key])}"


def _find_gate(term: TermConfig, terms: Sequence[TermConfig]) -> Gate | None:
    """The gate of a term, with the part that it compares."""
    if term.common.only_if is None:
        return None
    try:
        gate = parse_gate(term.common.only_if)
    except ValueError as error:
        raise ValueError(f"reward.terms: only_if of {term.label} {error}") from None
    first_parts = {other.label: other.parts[0] for other in terms}
    parts = {part: part for other in terms for part in other.parts}
    places = parts | first_parts
    if gate.part not in places:
        near = difflib.get_close_matches(gate.part, places, n=1, cutoff=0.6)
        hint = f"did you mean {near[0]}?" if near else f"the names are {', '.join(dict.fromkeys(places))}"
        raise ValueError(
            f"reward.terms: only_if of {term.label} is {term.common.only_if!r}, but no term or part is "
            f"called {gate.part}; {hint}"
        )
    return replace(gate, part=places[gate.part])
