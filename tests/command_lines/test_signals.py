"""SIGTERM and SIGINT as a scheduler or a user sends them to real processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_runs import tiny_arguments

from dalle_ppo.runs.checkpoints import latest_checkpoint

pytestmark = pytest.mark.slow


def start(module: str, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", f"dalle_ppo.{module}", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)


def stop_when(process: subprocess.Popen, text: str, number: int) -> tuple[int, str, float]:
    """Sends a signal once the process has printed a text; returns exit code, output and seconds."""
    printed = b""
    while text.encode() not in printed:
        printed += process.stderr.read1(4096)
        assert process.poll() is None, printed.decode()
    started = time.monotonic()
    process.send_signal(number)
    printed += process.stderr.read()
    return process.wait(), printed.decode(), time.monotonic() - started


def test_training_and_its_evaluation_can_be_stopped_and_go_on(tmp_path: Path):
    run_dir = tmp_path / "run"
    arguments = tiny_arguments(run_dir, checkpoint_every=100, num_iterations=2)
    code, printed, seconds = stop_when(start("train", *arguments), "PPO 1/2", signal.SIGTERM)
    assert code == 143 and seconds < 30 and "Traceback" not in printed
    newest = latest_checkpoint(run_dir)
    assert newest is not None
    assert printed.rstrip().endswith(
        f"stopped by SIGTERM; the newest checkpoint is {newest}; "
        f"go on with: python -m dalle_ppo.train --run_dir {run_dir} --resume"
    )
    resumed = start("train", "--run_dir", run_dir, "--resume")
    code, printed, seconds = stop_when(resumed, "evaluate reference", signal.SIGINT)
    assert code == 130 and seconds < 30 and "Traceback" not in printed
    assert f"go on with: python -m dalle_ppo.train --run_dir {run_dir} --resume" in printed
    code, printed, seconds = stop_when(start("evaluate", run_dir), "evaluate policy", signal.SIGTERM)
    assert code == 143 and seconds < 30 and "Traceback" not in printed
    assert printed.rstrip().endswith("what has been drawn is kept; go on with the same command")
    ended = start("train", "--run_dir", run_dir, "--resume")
    ended.stderr.read()
    assert ended.wait() == 0 and (run_dir / "report.html").is_file()
    assert not [path for path in run_dir.rglob(".*")], "nothing half-written is left"
