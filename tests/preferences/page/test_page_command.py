"""The command: wrong arguments, a port that is taken, and the real thing from start to end."""

import re
import signal
import subprocess
import sys
import urllib.request

import pytest
from tiny_runs import call

from dalle_ppo import label
from dalle_ppo.preferences.page.command import listen


@pytest.mark.parametrize(
    "arguments, line",
    [
        (["--num_images", "6"], "--num_images is 6; the page shows 2 to 4"),
        (["--port", "70000"], "--port is 70000; it must lie between 0"),
        (["--repeat", "0.9"], "--repeat is 0.9; it must lie between 0 and 0.5"),
        (["--repeat", "nan"], "--repeat is nan; it must lie between 0 and 0.5"),
        (["--goal", "0"], "--goal is 0; it must be at least 1"),
    ],
)
def test_wrong_arguments_are_told_before_anything_is_loaded(tmp_path, capsys, arguments, line):
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    done = call(label.main, [tmp_path, *arguments], capsys)
    assert done.code == 2 and line in done.error


def test_a_port_that_is_taken_is_told(tmp_path, capsys):
    pytest.importorskip("uvicorn")
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    with listen(0) as listener:
        host, port = listener.getsockname()
        assert host == "127.0.0.1", "no other machine reaches it"
        done = call(label.main, [tmp_path, "--port", port], capsys)
    assert done.code == 2 and f"--port {port}: " in done.error and "--port 0" in done.error


def test_a_missing_package_is_told(tmp_path, capsys, monkeypatch):
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    done = call(label.main, [tmp_path], capsys)
    assert done.code == 2 and "pip install -e '.[label]'" in done.error


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--num_images", "4", "--reference"]])
def test_the_page_of_a_run(tiny_run, tmp_path, more):
    """A real policy draws; Ctrl-C ends the command with a summary."""
    command = [sys.executable, "-m", "dalle_ppo.label", str(tiny_run.run_dir), "--port", "0", *more]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        address = next(found[0] for line in running.stdout if (found := re.search(r"http://\S+", line)))
        with urllib.request.urlopen(address) as page:
            assert b"Which picture is better?" in page.read()
        running.send_signal(signal.SIGINT)
        rest, _ = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 0 and "answers: " in rest
