"""A program and the one that it has started end together, in order."""

import os
import signal
import subprocess
import sys
import time

import pytest

from dalle_ppo.base.child import PARENT as PARENT_VARIABLE
from dalle_ppo.base.child import end_with_parent, run_child

CHILD = """
import time
from dalle_ppo.base.child import end_with_parent
from dalle_ppo.base.stopping import Stopped, StopSignals
try:
    with StopSignals().caught(str) as signals:
        end_with_parent()
        print("ready", flush=True)
        time.sleep(0.6)
        signals.check()
        time.sleep(20)
except Stopped as stopped:
    print("in order", flush=True)
    raise SystemExit(stopped.exit_code)
"""
PARENT = """
import sys
from dalle_ppo.base.child import run_child
from dalle_ppo.base.stopping import Stopped
try:
    run_child([sys.executable, "-c", sys.argv[1]], lambda: "go on with: again")
except Stopped as stopped:
    print(stopped)
    raise SystemExit(stopped.exit_code)
"""


def test_the_exit_code_is_passed_on():
    assert run_child([sys.executable, "-c", "raise SystemExit(7)"], str) == 7


@pytest.mark.skipif(os.name == "nt", reason="Windows has no groups of processes that signals reach")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("to_both", [False, True])
def test_a_signal_to_one_or_to_both_ends_both_in_order(number, to_both):
    """A scheduler may signal the command alone; a terminal signals both, and the parent passes it on, too."""
    command = [sys.executable, "-c", PARENT, CHILD]
    started = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as parent:
        assert parent.stdout.readline() == "ready\n"
        (os.killpg if to_both else os.kill)(parent.pid, number)
        printed = parent.stdout.read()
        assert parent.wait() == 128 + number
    assert printed == f"in order\nstopped by {signal.Signals(number).name}; go on with: again\n"
    assert time.monotonic() - started < 15


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent is gone")
def test_a_child_ends_in_order_when_its_parent_is_killed():
    command = [sys.executable, "-c", PARENT, CHILD]
    started = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as parent:
        assert parent.stdout.readline() == "ready\n"
        parent.kill()
        assert parent.stdout.read() == "in order\n"  # ends when the child, which holds the pipe, has ended
    assert time.monotonic() - started < 15


def test_only_the_child_itself_follows_its_parent(monkeypatch):
    monkeypatch.delenv(PARENT_VARIABLE, raising=False)
    assert not end_with_parent()
    monkeypatch.setenv(PARENT_VARIABLE, str(os.getppid() + 1))  # of a child's own child
    assert not end_with_parent()
