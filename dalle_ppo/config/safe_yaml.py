"""Reads YAML that may come from anybody: bounded in size, depth and aliases, and without names of classes."""

from collections.abc import Collection, Iterator
from pathlib import Path

import yaml

MAX_BYTES = 200_000
"""A file of all settings has 4000."""
MAX_DEPTH = 40
MAX_VALUES = 50_000
"""Keys and values once every alias is written out."""
REFUSED_KEYS = {
    "class_path": "code to import",
    "config": "another file, which nothing would check",
    "__default_config__": "another file, which nothing would check",
    "__path__": "another file, which nothing would check",
}
"""Keys that jsonargparse acts on while it parses a file.
Source: jsonargparse 4.53 imports the module in `class_path` before it refuses the class."""


def read_yaml(path: str | Path) -> object:
    """The content of a YAML file.

    Raises:
        ValueError: it is no file, too large or too deep, its aliases stand for too much, or it is not YAML.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"{file} is not a file; give a YAML file of settings")
    size = file.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"{file} has {size} bytes; a file of settings has at most {MAX_BYTES}: shorten it")
    try:
        return parse_yaml(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text ({error.reason}); save it as UTF-8") from None
    except OverflowError:
        raise ValueError(f"{file} holds a number that is too large; give a smaller one") from None
    except (yaml.YAMLError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{file}: {' '.join(str(error).split())}; correct it, or write it anew") from None


def parse_yaml(text: str) -> object:
    """The content of YAML text.

    Raises:
        ValueError: it is too deep, or its aliases stand for too much.
        yaml.YAMLError: it is not YAML.
    """
    _check_events(text)
    return _Loader(text).get_single_data()


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, of which the last would count."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        twice = next((key for number, key in enumerate(keys) if key in keys[:number]), None)
        if twice is not None:
            raise ValueError(f"line {node.start_mark.line + 1}: the key {twice} appears twice; keep one")
        return super().construct_mapping(node, deep)


def refuse_reaching_out(content: dict, where: str, records: Collection[str]) -> None:
    """Refuses settings that would make the parser import a module or read another file.

    Args:
        content: nested or dotted settings.
        where: the file or option, for the message.
        records: dotted names of sections and other settings that are records; text in their place would be
            taken for a class or a file.

    Raises:
        ValueError: there is one; names it.
    """
    for name, value in _entries(content):
        for key, why in REFUSED_KEYS.items():
            if key in name.split("."):
                raise ValueError(f"{where}: {name} names {why}: refused; leave it out")
        if isinstance(value, str) and name in records:
            raise ValueError(
                f"{where}: {name} is {value}, but must be a section of settings; leave it out, or fill it in"
            )


def _check_events(text: str) -> None:
    """Counts what the text stands for, without building it.

    Sizes of anchors are known when they end, so an alias costs one addition however much it stands for.
    """
    sizes: dict[str, int] = {}
    open_anchors: list[tuple[str | None, int]] = []
    count = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            open_anchors.append((event.anchor, count))
            if len(open_anchors) > MAX_DEPTH:
                raise ValueError(f"is nested more than {MAX_DEPTH} levels deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_anchors.pop()
            if anchor is not None:
                sizes[anchor] = count - before + 1
        elif isinstance(event, yaml.AliasEvent):
            if any(event.anchor == anchor for anchor, _ in open_anchors):
                raise ValueError(f"the alias *{event.anchor} is used inside its own definition")
            count += sizes.get(event.anchor, 1)
        count += isinstance(event, yaml.NodeEvent)
        if count > MAX_VALUES:
            raise ValueError(f"holds more than {MAX_VALUES} values once its aliases are written out")


def _entries(content: object, place: str = "") -> Iterator[tuple[str, object]]:
    """Dotted name and value of every entry, those in lists included."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield f"{place}{key}", value
            yield from _entries(value, f"{place}{key}.")
    elif isinstance(content, list):
        for value in content:
            yield from _entries(value, place)
