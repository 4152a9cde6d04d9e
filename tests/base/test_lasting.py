"""A program whose output nobody reads any more goes on, and ends with its own exit code."""

import os
import subprocess
import sys

import pytest

from dalle_ppo.base.lasting import Lasting, let_go

ENDS = """
import sys, warnings
from dalle_ppo.base.stopping import Stopped
from dalle_ppo.config.command_line import run_main
def main(argv):
    print("read", file=sys.stderr, flush=True)
    sys.stdin.readline()
    warnings.warn("nobody reads this")
    print("nor this")  # stays in the buffer
    raise {}
run_main(main)
"""


@pytest.fixture
def unread():
    """A stream whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w", buffering=1)
    yield stream
    let_go(stream)
    stream.close()  # raises if it still holds anything


def test_what_cannot_be_written_is_dropped(unread):
    with pytest.raises(BrokenPipeError):
        unread.write("a line\n")
    lasting = Lasting(unread)
    assert lasting.write("another\n") == 8
    lasting.flush()
    assert lasting.fileno() == unread.fileno()


def test_a_progress_bar_goes_silent(unread, monkeypatch):
    from tiny_trainer import TINY_CONFIG

    from dalle_ppo.training.progress_bar import ProgressBar

    monkeypatch.setattr(sys, "stderr", unread)
    with ProgressBar(TINY_CONFIG, [], 0, 2) as bar:
        bar.after_phase({"rollout": 1.0}, 8)
        with bar.writing_checkpoint():
            pass
    assert bar.checkpoints


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
@pytest.mark.parametrize(
    "ending, code", [("Stopped(15)", 143), ("ValueError('wrong')", 2), ("KeyboardInterrupt", 130)]
)
def test_a_command_keeps_its_exit_code(ending, code):
    """As in `train 2>&1 | tee log` when Ctrl-C also ends `tee`."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    pipes["env"] = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen([sys.executable, "-c", ENDS.format(ending)], **pipes, text=True) as process:
        assert process.stdout.readline() == "read\n"
        process.stdout.close()
        process.stdin.write("go on\n")
        process.stdin.flush()
        assert process.wait(20) == code


@pytest.mark.skipif(os.name == "nt", reason="a shell closes streams there in another way")
@pytest.mark.parametrize("closed, code", [(">&-", 0), ("2>&-", 0), (">&- 2>&-", 3)])
def test_streams_that_are_closed_from_the_start_change_no_exit_code(closed, code):
    program = f"from dalle_ppo.config.command_line import run_main; run_main(lambda argv: {code})"
    command = f'"{sys.executable}" -c "{program}" {closed}'
    assert subprocess.run(["sh", "-c", command], check=False).returncode == code
