"""A program that another one starts and waits for, and that stops together with it."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence

from dalle_ppo.base.stopping import Stopped, StopSignals

PARENT = "DALLE_PPO_PARENT"
"""Variable of the environment in which a child finds the number of the process that waits for it."""

SIGNAL_AT_PARENTS_END = 1  # PR_SET_PDEATHSIG


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
        child = subprocess.Popen(command, env=os.environ | {PARENT: str(os.getpid())})
        try:
            with signals.interruptible():
                return child.wait()
        except Stopped as stopped:
            child.send_signal(stopped.number)  # under Ctrl-C it has come already, and counts once
            child.wait()
            raise


def end_with_parent() -> bool:
    """In a child: lets the system send SIGTERM when the parent is gone, even if that was killed by SIGKILL.

    Linux only. A child of the child finds the variable too, but has another parent, and nothing is done.

    Returns:
        Whether it was done.

    Source: https://man7.org/linux/man-pages/man2/PR_SET_PDEATHSIG.2const.html
    """
    if sys.platform != "linux" or os.environ.get(PARENT) != str(os.getppid()):
        return False
    return ctypes.CDLL(None).prctl(SIGNAL_AT_PARENTS_END, int(signal.SIGTERM)) == 0
