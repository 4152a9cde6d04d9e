"""How `kill_test.py` starts commands as forks, kills them at a moment of a phase, and starts them again."""

import importlib
import os
import random
import select
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

LIMIT = 600.0
"""Seconds after which a command is too slow."""
END_BY_ITSELF = 30.0
"""Seconds within which the other processes of a team must have ended."""


@dataclass(frozen=True)
class Kill:
    """A moment: this share of the way through the n-th time that a phase is entered.

    `victim` is the rank of the process that is killed.
    """

    phase: str
    occurrence: int
    share: float
    victim: int = 0


@dataclass(frozen=True)
class Command:
    """What is started.

    Args:
        module: a command line of dalle_ppo, such as "train".
        argv: its arguments.
        phases: where a function's beginning and end are reported to the killer, by phase.
        size: processes, which form a team.
        writes: counts what it does to files, and kills it before one of them; None lets it be.
    """

    module: str
    argv: tuple[str, ...]
    phases: Mapping[str, str]
    size: int = 1
    writes: "Writes | None" = None


@dataclass(frozen=True)
class Writes:
    """Where a process kills itself: before it opens, renames, removes, makes or flushes a file.

    Args:
        folder: what happens elsewhere does not count.
        last: before which of them, from 1; 0 for never.
        log: gets a line for each.
    """

    folder: Path
    last: int
    log: Path


@dataclass
class Ended:
    """What became of a command.

    Args:
        code: exit code of the victim, or of the first process; negative if it was killed.
        killed: the phase in which it was killed; None if it was not.
        events: when phases began and ended.
        alone: seconds that the other processes of a team took to end by themselves.
    """

    code: int
    killed: str | None
    events: list[tuple[float, str, str]] = field(default_factory=list)
    alone: float = 0.0


def start(command: Command, log: Path) -> tuple[list[int], int]:
    """Starts the processes of a command; returns their ids and where the first one reports its phases."""
    environments: list[dict[str, str]] = [{}]
    if command.size > 1:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        environments = [
            address | {"WORLD_SIZE": str(command.size), "RANK": str(rank), "LOCAL_RANK": str(rank)}
            for rank in range(command.size)
        ]
    children, readers = [], []
    for environment in environments:
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.close(reader)
            run_in_fork(command, log, environment, writer)
        os.close(writer)
        children.append(child)
        readers.append(reader)
    for reader in readers[1:]:
        os.close(reader)
    return children, readers[0]


def free_port() -> int:
    """A port that nobody listens to."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def run_in_fork(command: Command, log: Path, environment: Mapping[str, str], writer: int) -> None:
    """Runs the command and ends the process."""
    try:
        os.environ.update(environment)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if environment.get("RANK", "0") == "0":
            report_phases(command.phases, writer)
        if command.writes is not None:
            kill_before(command.writes)
        from dalle_ppo.config.command_line import run_main

        main = importlib.import_module(f"dalle_ppo.{command.module}").main
        sys.argv = [command.module, *command.argv]
        run_main(main, together=command.size > 1)
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def kill_before(writes: Writes) -> None:
    """Counts the process's writes from now on."""
    log, folder, count, flush = (
        os.open(writes.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND),
        str(writes.folder),
        0,
        os.fsync,
    )

    def noted(event: str, path: str) -> None:
        nonlocal count
        if not path.startswith(folder):
            return
        count += 1
        os.write(log, f"{event} {path.removeprefix(folder)}\n".encode())
        if count == writes.last:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, args: tuple) -> None:
        changes = event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate")
        if event == "open" and isinstance(args[2], int):
            changes = bool(args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if changes and isinstance(args[0], str | bytes | os.PathLike):
            noted(event, os.fsdecode(args[0]))

    def flushed(descriptor: int) -> None:
        noted("fsync", os.readlink(f"/proc/self/fd/{descriptor}"))
        flush(descriptor)

    sys.addaudithook(hook)
    os.fsync = flushed


def report_phases(phases: Mapping[str, str], writer: int) -> None:
    """Makes the functions and methods that are named write a line as they begin and end."""

    def reporting(phase: str, function: Callable) -> Callable:
        def call(*args, **kwargs):
            os.write(writer, f"+{phase}\n".encode())
            try:
                return function(*args, **kwargs)
            finally:
                os.write(writer, f"-{phase}\n".encode())

        return call

    for phase, place in phases.items():
        owner, name = find(place)
        setattr(owner, name, reporting(phase, getattr(owner, name)))


def find(place: str) -> tuple[object, str]:
    """Owner and name of what `module:function` or `module:Class.method` names."""
    module_name, _, path = place.partition(":")
    owner: object = importlib.import_module(module_name)
    *classes, name = path.split(".")
    for one in classes:
        owner = getattr(owner, one)
    return owner, name


def follow(children: Sequence[int], reader: int, kill: Kill | None, spans: Mapping[str, float]) -> Ended:
    """Watches a command, and kills one of its processes at the moment that `kill` names.

    Args:
        children: ids of its processes.
        reader: where the first reports.
        kill: when; None leaves it alone.
        spans: seconds that a phase takes.

    Raises:
        RuntimeError: the others did not end by themselves.
    """
    events, begun, rest, at, where, killed = [], Counter(), b"", None, "between phases", None
    victim = children[kill.victim] if kill else children[0]
    deadline, since = time.monotonic() + LIMIT, None
    while True:
        now = time.monotonic()
        if now > deadline or (at is not None and now >= at):
            kill_tree(victim)
            killed = where if now <= deadline else "too slow"
            at, since, deadline = None, now, now + END_BY_ITSELF
        if since is not None and now > since + END_BY_ITSELF:
            break
        wait = min(deadline, at if at is not None else deadline) - time.monotonic()
        if not select.select([reader], [], [], max(0.0, wait))[0]:
            continue
        received = os.read(reader, 4096)
        if not received:
            break
        *lines, rest = (rest + received).split(b"\n")
        for line in lines:
            mark, phase = chr(line[0]), line[1:].decode()
            events.append((time.monotonic(), mark, phase))
            begun[phase] += mark == "+"
            where = phase if mark == "+" else f"after {phase}"
            if kill and mark == "+" and (phase, begun[phase]) == (kill.phase, kill.occurrence) and not killed:
                at = time.monotonic() + kill.share * spans.get(phase, 0.05)
    os.close(reader)
    codes = wait_for(children, END_BY_ITSELF if killed else LIMIT)
    if killed is None and codes[0] == -signal.SIGKILL:
        killed = where  # by itself, before a write
    alone = 0.0 if since is None or len(children) == 1 else time.monotonic() - since
    return Ended(codes[children.index(victim)] or max(codes), killed, events, alone)


def kill_tree(process: int) -> None:
    """Kills a process, then what it has started: a machine that fails takes both."""
    started = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    os.kill(process, signal.SIGKILL)
    for one in started:
        kill_tree(int(one))


def wait_for(children: Sequence[int], seconds: float) -> list[int]:
    """Exit codes of processes that must end by themselves.

    Raises:
        RuntimeError: one did not; it is killed.
    """
    codes: dict[int, int] = {}
    end, late = time.monotonic() + seconds, []
    while len(codes) < len(children):
        for child in [child for child in children if child not in codes]:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                codes[child] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > end and child not in late:
                late.append(child)
                os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    if late:
        raise RuntimeError(f"{len(late)} processes had not ended after {seconds:g} seconds")
    return [codes[child] for child in children]


def spans_of(events: Sequence[tuple[float, str, str]]) -> tuple[dict[str, float], Counter]:
    """Mean seconds of each phase, and how often it was entered."""
    begun: dict[str, float] = {}
    seconds, count = Counter(), Counter()
    for when, mark, phase in events:
        if mark == "+":
            begun[phase] = when
            count[phase] += 1
        elif phase in begun:
            seconds[phase] += when - begun.pop(phase)
    return {phase: seconds[phase] / count[phase] for phase in count}, count


def run_to_the_end(
    commands: Sequence[Command],
    log: Path,
    kills: Sequence[Kill],
    spans: Mapping[str, float],
    again: Callable[[Command], Command],
) -> list[Ended]:
    """Runs commands one after the other, killing them on the way; returns what became of each start.

    Args:
        commands: what makes the whole.
        log: what they print.
        kills: moments, each for one start.
        spans: seconds that a phase takes.
        again: how a killed command is started again.

    Raises:
        RuntimeError: a command failed, with the end of what it printed.
    """
    left, starts = list(kills), []
    for command in commands:
        while True:
            children, reader = start(command, log)
            ended = follow(children, reader, left.pop(0) if left else None, spans)
            starts.append(ended)
            if ended.killed is not None and ended.code < 0:
                command = again(command)
            elif ended.code:
                where = [one.killed for one in starts]
                raise RuntimeError(f"killed in {where}: exit {ended.code}\n{log.read_text()[-2000:]}")
            else:
                break
    return starts


def draw_kills(
    rng: random.Random, entered: Counter, count: int, order: Sequence[str], size: int
) -> list[Kill]:
    """Random moments: every phase as often as any other, whatever time it takes.

    Args:
        rng: draws them.
        entered: how often each phase is entered by a command left alone.
        count: how many.
        order: phases in the order of time, as a run that has got to its evaluation does not train again.
        size: processes, any of which may be the victim.
    """
    phases = sorted(rng.choices(sorted(entered), k=count), key=list(order).index)
    # A resumed process enters each phase less often than the first did.
    most = [entered[phase] // 2 if number == 0 else 1 for number, phase in enumerate(phases)]
    return [
        Kill(phase, rng.randint(1, max(1, limit)), rng.random(), rng.randrange(size) if size > 1 else 0)
        for phase, limit in zip(phases, most, strict=True)
    ]


def differences(alone: Mapping[str, object], killed: Mapping[str, object]) -> list[str]:
    """Names of what is not equal."""
    return [
        f"{name}: {alone.get(name)!r:.200} != {killed.get(name)!r:.200}"
        for name in sorted(alone.keys() | killed.keys())
        if alone.get(name) != killed.get(name)
    ]
