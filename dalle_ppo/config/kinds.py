"""The types of settings in words, for documentation and errors."""

import types
import typing
from dataclasses import fields, is_dataclass

WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false"}


def kind(annotation: object) -> str:
    """A field's type in words."""
    if typing.get_origin(annotation) is typing.Literal:
        return " or ".join(f"`{value}`" for value in typing.get_args(annotation))
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
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
