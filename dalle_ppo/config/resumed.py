"""The command line of a resumed run, on top of the settings that the run has saved.

`--reward.terms+` and `--evaluation.judges+` add to what is saved. The command that started the run, given
again with `--resume`, would therefore add its entries once more.
"""

import json
from collections.abc import Mapping
from typing import Any

import yaml

from dalle_ppo.config.safe_yaml import parse_yaml, read_yaml
from dalle_ppo.config.settings import Config
from dalle_ppo.config.term import spelled_out


def without_repeated(argv: list[str], saved: Config) -> tuple[list[str], list[str]]:
    """The command line without added entries that the run has already.

    Args:
        argv: the command line.
        saved: the run's settings.

    Returns:
        What is left of it, and the options that were left out or shortened, as given.
    """
    lists = {"reward.terms": saved.reward.terms, "evaluation.judges": saved.evaluation.judges}
    kept, repeated, words = [], [], iter(argv)
    for word in words:
        option, equals, value = word.partition("=")
        name = option.removeprefix("--").removesuffix("+")
        if not option.startswith("--") or (option != "--config" and name not in lists):
            kept.append(word)
            continue
        given = [word] if equals else [word, *[text for text in (next(words, None),) if text is not None]]
        value = value if equals else given[-1]
        if option == "--config":
            for replaced in [name for name in lists if _sets(value, name)]:
                del lists[replaced]
        elif not option.endswith("+"):
            del lists[name]  # what follows is added to this list, not to the saved one
        else:
            new = _new_entries(value, lists[name])
            if new is not None:
                repeated.append(" ".join(given))
                given = [option, json.dumps(new)] if new else []
        kept += given
    return kept, repeated


def _new_entries(text: str, saved: list[Mapping[str, Any]]) -> list | None:
    """The entries that are not saved; None if none is, or if they are not entries, which the parser says."""
    try:
        value = parse_yaml(text)
        entries = value if isinstance(value, list) else [value]
        new = [entry for entry in entries if spelled_out(entry) not in saved]
    except (yaml.YAMLError, ValueError):
        return None
    return new if len(new) < len(entries) else None


def _sets(path: str, name: str) -> bool:
    """Whether a file of settings has this one."""
    content = read_yaml(path)
    section, _, key = name.partition(".")
    return name in content or (isinstance(content.get(section), dict) and key in content[section])
