"""A signal ends a program where it may, once, and in time; a second one ends it at once."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from dalle_ppo.base.stopping import Stopped, StopSignals

NUMBERS = [signal.SIGTERM, signal.SIGINT]


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_interrupts_where_it_may_and_waits_where_it_may_not(number):
    signals, done = StopSignals(), []
    with pytest.raises(Stopped) as caught, signals.caught(lambda: "go on with: again"):
        send(number)
        done.append("the step is finished")
        with signals.interruptible():
            done.append("and the next not begun")
    assert done == ["the step is finished"]
    assert str(caught.value) == f"stopped by {signal.Signals(number).name}; go on with: again"
    assert caught.value.exit_code == 128 + number
    with pytest.raises(Stopped), StopSignals().caught(str) as others, others.interruptible():
        send(number)
        time.sleep(5)
        done.append("slept through it")
    assert len(done) == 1


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
@pytest.mark.parametrize("grace, again, code", [(20, True, 130), (0.2, False, 143)])
def test_it_also_ends_where_nobody_reads_its_last_line(grace, again, code):
    """Ctrl-C ends both sides of `train 2>&1 | tee log`."""
    command = [sys.executable, "-c", STUCK, str(grace)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.stderr.close()
        process.send_signal(signal.SIGTERM)
        if again:
            time.sleep(0.6)
            process.send_signal(signal.SIGINT)
        assert process.wait(15) == code


def test_nobody_swallows_it():
    with pytest.raises(Stopped), StopSignals().caught(str) as signals, signals.interruptible():
        try:
            send(signal.SIGTERM)
            time.sleep(5)
        except Exception:
            pass


def test_handlers_are_as_before_afterwards_and_elsewhere():
    before = [signal.getsignal(number) for number in NUMBERS]
    with StopSignals().caught(str):
        assert [signal.getsignal(number) for number in NUMBERS] != before
    assert [signal.getsignal(number) for number in NUMBERS] == before
    assert not [thread for thread in threading.enumerate() if thread.name == "signals"]

    def elsewhere():
        with StopSignals().caught(str):  # Python refuses handlers in other threads
            assert [signal.getsignal(number) for number in NUMBERS] == before

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()


def test_an_ignored_signal_stays_ignored():
    """As under nohup, or in the background of a shell script."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignals().caught(str) as signals, signals.interruptible():
            send(signal.SIGINT)
            time.sleep(0.05)
    finally:
        signal.signal(signal.SIGINT, before)


STUCK = """
import sys, time
from dalle_ppo.base import stopping
stopping.GRACE_SECONDS = float(sys.argv[1])
with stopping.StopSignals().caught(lambda: "go on with: again"):
    print("ready", flush=True)
    time.sleep(30)
"""


@pytest.mark.parametrize("grace, again, words", [(20, True, "second signal"), (0.2, False, "0.2 seconds")])
def test_a_program_that_is_stuck_ends_on_a_second_signal_or_in_time(grace, again, words):
    command = [sys.executable, "-c", STUCK, str(grace)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        if again:
            time.sleep(0.6)  # two that come together are one
            process.send_signal(signal.SIGINT)
        error = process.stderr.read()
        assert process.wait(20) == (130 if again else 143)
    assert time.monotonic() - started < 15
    assert words in error and error.rstrip().endswith("go on with: again")
