"""Settings from YAML and the command line and back, and how a command line ends."""

import argparse
import difflib
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import NoReturn

import yaml

from dalle_ppo.config import settings as config
from dalle_ppo.config.settings import Config


def parse_command_line(
    argv: list[str] | None, prog: str, description: str, flags: dict[str, str] | None = None
) -> tuple[Config, dict[str, bool]]:
    """Reads `--config FILE`, dotted overrides and bare flags.

    Args:
        argv: arguments; None is the process's.
        prog: shown in help.
        description: shown in help.
        flags: names of bare flags with their help, such as `resume`.

    Returns:
        The configuration, and which flags were given.

    Raises:
        ValueError: for an unknown key (the nearest is offered) or a value of the wrong kind.
    """
    from jsonargparse import ArgumentError, ArgumentParser, Namespace

    parser = ArgumentParser(prog=prog, description=description, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file of settings")
    for name, text in (flags or {}).items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    parser.add_class_arguments(Config)
    try:
        parsed: Namespace = parser.parse_args(argv)
        given = {name: bool(parsed.pop(name)) for name in flags or {}}
        parsed.pop("config", None)
        for f in fields(Config):
            if is_dataclass(f.type) and not isinstance(parsed[f.name], Namespace):
                raise ValueError(
                    f"{f.name} is {parsed[f.name]}, but a section of settings; leave it out, or give it some"
                )
        return Config(**vars(parser.instantiate(parsed))), given
    except ArgumentError as error:
        raise ValueError(_explain(str(error), list(flags or {}))) from None


def _explain(message: str, flags: list[str]) -> str:
    """One line of a parser's message, with the nearest setting where a key is unknown."""
    line = " ".join(message.split())
    group = re.search(r"Group '([\w.]+)' does not accept", line)
    unknown = re.search(
        r"unrecognized arguments: --([\w.]+)|does not accept option '([\w.]+)'"
        r"|Option '([\w.]+)' is not accepted",
        line,
    )
    if line.startswith("Unexpected config:"):
        return "the file of --config is no YAML of settings, such as `seed: 1`"
    part = re.search(r"^Parser key \"([\w.]+)\".* '[\w.]+\.(\w+)': Option '(\w+)' is not accepted", line)
    if part:
        return _explain_part(*part.groups())
    if unknown is None or "class_path" in line:
        return line
    key = (f"{group.group(1)}." if group else "") + next(filter(None, unknown.groups()))
    near = difflib.get_close_matches(key, flags + setting_names(), n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}?" if near else "--help lists all settings"
    return f"unknown setting {key}; {hint}"


def _explain_part(setting: str, class_name: str, key: str) -> str:
    """Of an unknown key in a setting that is a record of its own, such as an item of a list."""
    names = [f.name for f in fields(getattr(config, class_name))]
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.6)
    hint = f"did you mean {setting}.{near[0]}?" if near else f"it has {', '.join(names)}"
    return f"unknown setting {setting}.{key}; {hint}"


def setting_names(config_class: type = Config, prefix: str = "") -> list[str]:
    """Dotted names of all settings."""
    names = []
    for f in fields(config_class):
        names.append(prefix + f.name)
        if is_dataclass(f.type):
            names += setting_names(f.type, f"{prefix}{f.name}.")
    return names


def to_yaml(settings: Config) -> str:
    """The resolved settings as YAML."""
    return yaml.safe_dump(asdict(settings), sort_keys=False, allow_unicode=True)


def load_config(path: str | Path) -> Config:
    """Reads the settings that a run saved.

    Raises:
        ValueError: naming the file, if it is absent or does not fit.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path} does not exist; is its folder a run of dalle_ppo.train?")
    try:
        return parse_command_line(["--config", str(path)], "config", "")[0]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


class OneLineParser(argparse.ArgumentParser):
    """argparse, with a user's mistake as a ValueError that `run_main` prints, instead of a usage text."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; --help lists the options")


def run_main(main: Callable[[list[str] | None], int]) -> None:
    """Runs a command line: a user's error or an unusable file becomes one line and exit code 2.

    So does a warning, without the exit code.
    """
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
        try:
            sys.exit(main(None))
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)
