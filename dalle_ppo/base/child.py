"""A program that another one starts and waits for, and that stops together with it."""

import subprocess
from collections.abc import Callable, Sequence

from dalle_ppo.base.stopping import Stopped, StopSignals


def run_child(command: Sequence[str], advice: Callable[[], str]) -> int:
    """Runs a program until it has ended; a signal to this process is passed on to it.

    Args:
        command: the program and its arguments.
        advice: says how to go on after a signal.

    Returns:
        The program's exit code; negative if a signal ended it.

    Raises:
        Stopped: a signal came; the program has ended as well.
    """
    with StopSignals().caught(advice) as signals:
        child = subprocess.Popen(command)
        try:
            with signals.interruptible():
                return child.wait()
        except Stopped as stopped:
            child.send_signal(stopped.number)  # under Ctrl-C it has come already, and counts once
            child.wait()
            raise
