"""All sections of the settings, including those of every objective."""

import typing
from collections.abc import Iterator
from dataclasses import fields, is_dataclass

from dalle_ppo.config.objective import find_objective, objective_names
from dalle_ppo.config.settings import OBJECTIVE_FIELD, Config


def all_sections() -> Iterator[tuple[str, type]]:
    """Name and record of each section, in the order of a settings file; "" is the top level."""
    yield "", Config
    for f in fields(Config):
        if f.name == OBJECTIVE_FIELD:
            yield from ((name, find_objective(name).settings) for name in objective_names())
        elif is_dataclass(f.type):
            yield f.name, f.type


def setting_names() -> list[str]:
    """Dotted names of all settings and sections, including those of every objective."""
    names = [f.name for f in fields(Config) if f.name != OBJECTIVE_FIELD]
    for section, record in all_sections():
        if section and fields(record):
            names += [section] if section not in names else []
            names += [f"{section}.{f.name}" for f in fields(record)]
    return names


def refuse_value(name: str, value: object) -> None:
    """Refuses a value for a whole section on the command line, such as `--model mini`.

    Args:
        name: dotted name of any setting or section.
        value: what is given for it; settings, as a dict, are fine.

    Raises:
        ValueError: it is a section; the message offers a setting.
    """
    record = dict(all_sections()).get(name) if name else None
    if record is None or not fields(record) or isinstance(value, dict):
        return
    names = [f.name for f in fields(record)]
    given = None if str(value).startswith("--") else value  # then it is the next option
    near = f"--{name}.{names[0]} {'VALUE' if given is None else given}"
    if name in objective_names() and given is None:
        near = f"--objective {name}"
    raise ValueError(
        f"--{name} is a section, not a setting; did you mean {near}? Its settings are {', '.join(names)}"
    )


def record_classes() -> dict[str, type]:
    """Records that are part of a single setting's value, such as an item of a list, by class name."""
    found: dict[str, type] = {}
    for _, section in all_sections():
        for f in fields(section):
            for inner in (f.type, *typing.get_args(f.type)):
                if is_dataclass(inner):
                    found[inner.__name__] = inner
    return found


def record_names() -> set[str]:
    """Dotted names of what holds settings of its own: sections, and single settings that are records."""
    found = {section for section, _ in all_sections()} - {""}
    for section, record in all_sections():
        for f in fields(record):
            if any(is_dataclass(inner) for inner in (f.type, *typing.get_args(f.type))):
                found.add(f"{section}.{f.name}" if section else f.name)
    return found


def setting_types() -> dict[str, object]:
    """The type of each single setting, by dotted name."""
    sections = [(f"{section}." if section else "", record) for section, record in all_sections()]
    return {
        f"{prefix}{f.name}": f.type
        for prefix, record in sections
        for f in fields(record)
        if f.name != OBJECTIVE_FIELD
    }
