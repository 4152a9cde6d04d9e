"""Reads settings from YAML and the command line, writes them, and turns errors into one line."""

import argparse
import difflib
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext, redirect_stderr
from dataclasses import asdict, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import yaml

from dalle_ppo.base.allocator import keep_freed_memory
from dalle_ppo.base.halving import is_out_of_memory, out_of_memory_line
from dalle_ppo.base.lasting import Lasting, let_go
from dalle_ppo.base.run_format import FORMAT, check_format
from dalle_ppo.base.stopping import Stopped
from dalle_ppo.base.team import launched
from dalle_ppo.config.kinds import kind
from dalle_ppo.config.objective import Objective, find_objective, objective_names
from dalle_ppo.config.options_help import OptionsHelp
from dalle_ppo.config.renamed import explain_old
from dalle_ppo.config.safe_yaml import parse_yaml, read_yaml, refuse_reaching_out
from dalle_ppo.config.sections import (
    record_classes,
    record_names,
    refuse_value,
    setting_names,
    setting_types,
)
from dalle_ppo.config.settings import OBJECTIVE_FIELD, Config

MANY_PROCESSES = (
    "started in {} processes, but only dalle_ppo.train works in several; start it without torchrun, "
    "accelerate launch or mpirun, as python -m"
)
ONE_PROCESS = (
    "accelerate launch was asked for several processes but started one, because it found no GPUs or was told "
    "--cpu; use torchrun --nproc_per_node N -m dalle_ppo.train, or accelerate launch --multi_gpu, which also "
    "starts them without GPUs"
)

LONGEST_MESSAGE = 1000
TOLD_SECONDS = 10
"""How long a process that a signal has stopped waits for the first one to say so."""
NO_SETTINGS = "does not contain settings as YAML, such as `seed: 1`"

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def parse_command_line(
    argv: list[str] | None, prog: str, description: str, flags: dict[str, str] | None = None
) -> tuple[Config, dict[str, bool]]:
    """Reads `--config FILE`, dotted overrides and bare flags.

    The chosen objective's own defaults apply to whatever neither a file nor the command line sets.

    Args:
        argv: arguments; None uses the process's.
        prog: shown in help.
        description: shown in help.
        flags: names of bare flags with their help, such as `resume`.

    Returns:
        The configuration, and which flags were given.

    Raises:
        ValueError: a key is unknown (the message offers the nearest), or a value has the wrong type.
    """
    from jsonargparse import ArgumentError

    flags = flags or {}
    _check_given(sys.argv[1:] if argv is None else argv)
    parser = _make_parser(prog, description, flags)
    try:
        given = parser.parse_args(argv, defaults=False)
        check_format(given.get("format", FORMAT), "--config")
        objective = find_objective(given.get("objective", Config.objective))
        _refuse_other_objectives(given, objective)
        parser.set_defaults(objective.defaults)
        parsed = parser.parse_args(argv)
        return _to_config(parser, parsed, objective), {name: bool(parsed[name]) for name in flags}
    except ArgumentError as error:
        raise ValueError(_explain(str(error), list(flags))) from None


def _check_given(argv: list[str]) -> None:
    """Checks files and values before the parser sees them, as it would import modules that they name."""
    words = iter(argv)
    records = record_names()
    for word in words:
        option, equals, value = word.partition("=")
        if not option.startswith("--"):
            continue
        if option == "--config":
            path = value if equals else next(words, None)
            if path is None:
                raise ValueError("--config lacks its file; give a YAML file of settings")
            content = read_yaml(path)
            if not isinstance(content, dict):
                raise ValueError(f"{path}, given with --config, {NO_SETTINGS}")
            refuse_reaching_out(content, path, records)
            continue
        name = option.removeprefix("--").removesuffix("+")
        if equals or name in records or "." in name:
            value = _value(value if equals else next(words, ""))
            refuse_value(name, value)
            refuse_reaching_out({name: value}, option, records)


def _value(text: str) -> object:
    """A value of the command line; text where it is not YAML."""
    try:
        return parse_yaml(text)
    except (yaml.YAMLError, ValueError):
        return text


def _make_parser(prog: str, description: str, flags: dict[str, str]) -> "ArgumentParser":
    """A parser for all settings; its help is the text below each setting."""
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    # What --print_config would print are flags too, and given back they would act without being typed.
    parser = ArgumentParser(
        prog=prog, description=description, exit_on_error=False, allow_abbrev=False, print_config=None
    )
    parser.add_argument("--config", action="config", help="YAML file of settings")
    parser.add_argument("--format", type=int, help=argparse.SUPPRESS)  # in files that a run has written
    for name, text in flags.items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    parser.add_class_arguments(Config, skip={OBJECTIVE_FIELD})
    for name in objective_names():
        parser.add_class_arguments(find_objective(name).settings, name)
    for action in parser._actions:  # jsonargparse offers --SECTION FILE, which `refuse_reaching_out` refuses
        if action.metavar == "CONFIG":
            action.help = argparse.SUPPRESS
    return parser


def _refuse_other_objectives(given: "Namespace", objective: Objective) -> None:
    """Refuses settings of an objective that was not chosen."""
    for name in objective_names():
        if name != objective.name and name in given:
            raise ValueError(
                f"there are settings for {name}, but objective is {objective.name}, which ignores them; "
                f"leave them out, or set objective to {name}"
            )


def _to_config(parser: "ArgumentParser", parsed: "Namespace", objective: Objective) -> Config:
    """The parser's result as records."""
    from jsonargparse import Namespace

    sections = [f.name for f in fields(Config) if is_dataclass(f.type)]
    sections += [objective.name] if fields(objective.settings) else []
    for name in sections:
        if not isinstance(parsed[name], Namespace):
            raise ValueError(
                f"{name} is {parsed[name]}, but must be a section of settings; leave it out, or fill it in"
            )
    _refuse_nulls(parsed)
    records = parser.instantiate(parsed)
    values = {f.name: records[f.name] for f in fields(Config) if f.name != OBJECTIVE_FIELD}
    return Config(**values, objective_settings=records.get(objective.name))


def _refuse_nulls(parsed: "Namespace") -> None:
    """Refuses null for a setting that has no such value; the parser takes it for every type."""
    for name, annotation in setting_types().items():
        if parsed.get(name, "") is None and "null" not in kind(annotation) and annotation is not object:
            raise ValueError(
                f"{name} is null; it must be of type {kind(annotation)}: leave it out for its default"
            )


def _explain(message: str, flags: list[str]) -> str:
    """The parser's message as one line, with the nearest setting if a key is unknown."""
    line = " ".join(message.split())
    group = re.search(r"Group '([\w.]+)' does not accept", line)
    unknown = re.search(
        r"unrecognized arguments: --([\w.]+)|does not accept option '([\w.]+)'"
        r"|Option '([\w.]+)' is not accepted",
        line,
    )
    if line.startswith("Unexpected config:"):
        return f"the file given with --config {NO_SETTINGS}"
    part = re.search(r"^Parser key \"([\w.]+)\".* '[\w.]+\.(\w+)': Option '(\w+)' is not accepted", line)
    if part:
        return _explain_part(*part.groups())
    if unknown is None or "class_path" in line:
        return _explain_type(line)
    key = (f"{group.group(1)}." if group else "") + next(filter(None, unknown.groups()))
    if old := explain_old(key):
        return old
    near = difflib.get_close_matches(key, flags + setting_names(), n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}?" if near else "--help lists the settings"
    return f"unknown setting {key}; {hint}"


def _explain_type(line: str) -> str:
    """The message for a value of the wrong type, with the type in words; other messages as they are."""
    named = re.match(r'Parser key "([\w.]+)":', line)
    annotation = setting_types().get(named[1]) if named else None
    found = re.search(r"(?:Got value|Given value): (.*?)(?: Given value type.*)?$", line)
    if annotation is None or found is None:
        return line[:LONGEST_MESSAGE]
    return f"{named[1]} is {found[1][:80]}; it must be of type {kind(annotation)}"


def _explain_part(setting: str, class_name: str, key: str) -> str:
    """The message for an unknown key in a setting that is itself a record, such as an item of a list."""
    names = [f.name for f in fields(record_classes()[class_name])]
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.6)
    hint = f"did you mean {setting}.{near[0]}?" if near else f"it has {', '.join(names)}"
    return f"unknown setting {setting}.{key}; {hint}"


def to_dict(settings: Config) -> dict[str, object]:
    """The resolved settings, nested and named as in a file."""
    named = {}
    for name, value in asdict(settings).items():
        if name != OBJECTIVE_FIELD:
            named[name] = value
        elif value:
            named[settings.objective] = value
    return named


def to_yaml(settings: Config) -> str:
    """The resolved settings as YAML, with the number of the format."""
    return yaml.safe_dump({"format": FORMAT, **to_dict(settings)}, sort_keys=False, allow_unicode=True)


def load_config(path: str | Path) -> Config:
    """Reads the settings that a run saved.

    Raises:
        ValueError: the file is missing, invalid or in another format; the message names it.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path} does not exist; is its folder a run of dalle_ppo.train?")
    _check_saved_format(path)
    try:
        return parse_command_line(["--config", str(path)], "config", "")[0]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _check_saved_format(path: str | Path) -> None:
    """Refuses a run in another format; the first format had no number."""
    saved = read_yaml(path)
    if isinstance(saved, dict):
        check_format(saved.get("format", 1), path)


class OneLineParser(argparse.ArgumentParser):
    """argparse that raises a user's mistake as a ValueError, which `run_main` prints, and shows no usage.

    `--help` tells the defaults.
    """

    def __init__(self, **options: object) -> None:
        super().__init__(**{"formatter_class": OptionsHelp, **options})

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; --help lists the options")


def run_main(main: Callable[..., int], together: bool = False) -> None:
    """Runs a command line: a user's error or an unusable file becomes one line and exit code 2.

    So does a signal, with exit code 143 or 130, and a lack of memory. A warning becomes one line too. Started
    in several processes, a command that does not work in a team ends with exit code 2, and the first process
    alone says why: they would all do the same work and write the same files.

    Args:
        main: takes the arguments, None for the process's own; of a team, the team too.
        together: whether several processes work as a team.
    """
    keep_freed_memory()
    try:
        with redirect_stderr(Lasting(sys.stderr)) if sys.stderr is not None else nullcontext():
            _run_main(main, together)
    finally:
        let_go(sys.stdout)
        let_go(sys.stderr)


def _run_main(main: Callable[..., int], together: bool) -> NoReturn:
    rank, size = launched(os.environ)
    if size > 1 and together:
        _run_in_team(main, rank, size)
    if size > 1:
        if rank == 0:
            print(f"error: {MANY_PROCESSES.format(size)}", file=sys.stderr)
        sys.exit(2)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
        try:
            if together and lacks_processes(os.environ):
                raise ValueError(ONE_PROCESS)
            sys.exit(main(None))
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except Stopped as stopped:
            print(f"\n{stopped}", file=sys.stderr)
            sys.exit(stopped.exit_code)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            print(f"error: {out_of_memory_line(error)}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)


def lacks_processes(environment: Mapping[str, str]) -> bool:
    """Whether `accelerate launch` has started one process of several.

    accelerate 1.15 sets an address for processes to meet at only if it was asked for more than one, but then
    starts one where it finds no GPUs, and tells it no number.
    """
    by_accelerate = any(name.startswith("ACCELERATE_") for name in environment)
    return by_accelerate and "MASTER_ADDR" in environment and "WORLD_SIZE" not in environment


def _show_in_team(rank: int, message: Warning | str, *_: object, **__: object) -> None:
    """Shows the first process's warnings, and of the others those that slow all of them down."""
    if rank == 0:
        print(f"warning: {message}", file=sys.stderr)
    elif "out of memory" in str(message):
        print(f"warning: process {rank}: {message}", file=sys.stderr)


def _run_in_team(main: Callable[..., int], rank: int, size: int) -> NoReturn:
    """Runs a command line as one process of a team: whatever ends one ends all, with one line."""
    from dalle_ppo.base.distributed import form_team

    with warnings.catch_warnings():
        warnings.showwarning = partial(_show_in_team, rank)
        try:
            team = form_team(rank, size)
        except ValueError as error:
            if rank == 0:
                print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        try:
            code = main(None, team)
            team.close()
        except (ValueError, OSError) as error:
            team.watch.end(f"error: {error}", 2)
        except Stopped as stopped:
            if rank != 0:
                team.watch.join(TOLD_SECONDS)  # the first process, whose folder it is, says it and ends all
            team.watch.end(str(stopped), stopped.exit_code)
        except KeyboardInterrupt:
            team.watch.end("interrupted", 130)
        except SystemExit as end:
            code = int(end.code or 0)  # of --help
        except BaseException as error:
            if is_out_of_memory(error):
                team.watch.end(f"error: process {rank}: {out_of_memory_line(error)}", 2)
            team.end_if_lost(error)  # FSDP2's own exchanges, which the team does not see
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)  # the watch of the first process sees it; a normal end could wait for a GPU for ever
    team.watch.leave()
    for stream in (sys.stdout, sys.stderr):
        let_go(stream)
    os._exit(code)  # threads of torch's exchanges can abort a normal end, when all has been written
