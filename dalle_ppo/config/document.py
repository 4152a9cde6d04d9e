"""Writes docs/settings.md from the text beside each setting.

    python -m dalle_ppo.config.document docs/settings.md

`--help` shows the same text: jsonargparse reads it with the same reader, docstring_parser.
"""

import sys
import types
import typing
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path

import yaml

from dalle_ppo.config.objective import find_objective, objective_names
from dalle_ppo.config.renamed import CONSTANTS, RENAMED
from dalle_ppo.config.sections import all_sections
from dalle_ppo.config.settings import OBJECTIVE_FIELD
from dalle_ppo.config.term import Common, settings_class, term_names

HEAD = """# Settings

Every setting has a dotted name. Write it in a YAML file (`--config FILE`) or on the command line
(`--actor.learning_rate 1e-4`); the command line wins. `python -m dalle_ppo.train --help` shows the same text.

This page is written by `python -m dalle_ppo.config.document docs/settings.md`; to change it, edit
the text beside the setting in `dalle_ppo/config/`.
"""

WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false"}


def described(record: type) -> dict[str, str]:
    """The text beside each field of a record, on one line."""
    from docstring_parser import parse_from_object

    return {p.arg_name: " ".join((p.description or "").split()) for p in parse_from_object(record).params}


def settings_page() -> str:
    """The whole of docs/settings.md."""
    parts = [HEAD]
    for name, record in all_sections():
        parts += _section(f"`{name}`" if name else "The run", f"{name}." if name else "", record)
    parts += _section("Every entry of `reward.terms`", "", Common)
    for name in term_names():
        parts += _section(f"Term `{name}` of `reward.terms`", "", settings_class(name))
    parts.append(_defaults_of_objectives())
    parts.append(_old_settings())
    return "\n".join(parts)


def _section(title: str, prefix: str, record: type) -> Iterator[str]:
    texts = described(record)
    yield f"## {title}\n\n{' '.join(record.__doc__.split())}\n"
    shown = [f for f in fields(record) if f.name != OBJECTIVE_FIELD and not is_dataclass(f.type)]
    if shown:
        rows = [
            f"| `{prefix}{f.name}` | {_cell(kind(f.type))} | {default(f)} | {_cell(texts[f.name])} |"
            for f in shown
        ]
        yield "\n".join(["| setting | type | default | meaning |", "|---|---|---|---|", *rows]) + "\n"


def kind(annotation: object) -> str:
    """A field's type in words."""
    if typing.get_origin(annotation) is typing.Literal:
        return " or ".join(f"`{value}`" for value in typing.get_args(annotation))
    if isinstance(annotation, types.UnionType):
        return " or ".join(
            "null" if part is type(None) else kind(part) for part in typing.get_args(annotation)
        )
    if typing.get_origin(annotation) is list:
        return f"list of {kind(*typing.get_args(annotation))}"
    if typing.get_origin(annotation) is dict:
        key, value = typing.get_args(annotation)
        if value is typing.Any:
            return "settings"
        return f"{kind(key)} to {kind(value)}"
    if is_dataclass(annotation):
        return "{" + ", ".join(f.name for f in fields(annotation)) + "}"
    return WORDS.get(annotation, "any value")


def default(f: Field) -> str:
    """A field's default as YAML; "none" where it must be given."""
    if f.default is MISSING and f.default_factory is MISSING:
        return "none"
    value = f.default if f.default is not MISSING else f.default_factory()
    return f"`{_yaml(value)}`"


def _yaml(value: object) -> str:
    return (
        yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)
        .removesuffix("\n...\n")
        .strip()
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _defaults_of_objectives() -> str:
    lines = ["## Defaults of an objective\n"]
    lines.append(
        "With another objective, these defaults replace the general ones, unless you set them yourself.\n"
    )
    lines += ["| objective | setting | default |", "|---|---|---|"]
    for name in objective_names():
        for setting, value in find_objective(name).defaults.items():
            lines.append(f"| `{name}` | `{setting}` | `{_yaml(value)}` |")
    return "\n".join(lines) + "\n"


def _old_settings() -> str:
    lines = ["## Settings of version 0.1\n", "| was | is |", "|---|---|"]
    lines += [f"| `{old}` | {new} |" for old, new in RENAMED.items()]
    lines += [f"| `{old}` | a constant, {value} |" for old, value in CONSTANTS.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(settings_page(), encoding="utf-8")
