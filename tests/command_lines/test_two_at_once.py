"""Two processes at once: on one run's folder, and many of them from a launcher."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_runs import tiny_arguments

from dalle_ppo import evaluate, generate, train
from dalle_ppo.base.lock import LOCK_FILE
from dalle_ppo.base.team import launched
from dalle_ppo.runs.metrics import read_metrics

unix = pytest.mark.skipif(os.name == "nt", reason="needs signals")


def wait_for(path: Path, process: subprocess.Popen) -> None:
    end = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None and time.monotonic() < end, "the run has not started"
        time.sleep(0.05)


@unix
def test_a_second_process_is_refused_while_the_first_lives_and_not_when_it_was_killed(tmp_path, cli):
    run_dir = tmp_path / "run"
    arguments = tiny_arguments(run_dir, num_iterations=1000, checkpoint_every=1, evaluation__at_end="false")
    command = [sys.executable, "-m", "dalle_ppo.train", *arguments]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        try:
            wait_for(run_dir / "checkpoints" / "step_000001", first)
            first.send_signal(signal.SIGSTOP)  # it lives, and writes nothing meanwhile
            before = (run_dir / "config.yaml").stat().st_mtime_ns
            for main, second in (
                (train.main, ("--run_dir", run_dir, "--resume")),
                (train.main, (*arguments, "--overwrite")),
                (evaluate.main, (run_dir,)),
            ):
                outcome = cli(main, *second)
                assert (
                    outcome.code == 2 and f"{run_dir} is in use by process {first.pid} on " in outcome.error
                )
            assert "or evaluate a copy of the folder" in outcome.error
            assert (run_dir / "config.yaml").stat().st_mtime_ns == before
            picture = ("--out", tmp_path / "a.png", "--num_images", "1")
            assert cli(generate.main, "a boat", *picture, "--model", run_dir).code == 0, "it only reads"
        finally:
            first.kill()
    assert (run_dir / LOCK_FILE).exists(), "it had no chance to remove it"
    done = len(read_metrics(run_dir / "metrics.jsonl"))
    more = ("--num_iterations", str(done + 1))
    assert cli(train.main, "--run_dir", run_dir, "--resume", *more).code == 0
    assert not (run_dir / LOCK_FILE).exists()


def test_a_launcher_is_recognised():
    assert launched({}) == launched({"WORLD_SIZE": "8"}) == launched({"RANK": "1"}) == (0, 1)
    assert launched({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "3"}) == (3, 8)
    assert launched({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}) == (1, 2)
    assert launched({"RANK": "x", "WORLD_SIZE": ""}) == (0, 1)


@pytest.mark.parametrize("rank, size", [(0, 2), (1, 2), (7, 8)])
def test_of_many_processes_the_first_says_why_and_all_end(cli, monkeypatch, tmp_path, rank, size):
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(size))
    outcome = cli(train.main, *tiny_arguments(tmp_path / "run"))
    assert outcome.code == 2 and not list(tmp_path.iterdir()) and outcome.out == ""
    if rank == 0:
        assert f"started in {size} processes" in outcome.error and "torchrun" in outcome.error
    else:
        assert outcome.err == ""


def test_a_launcher_of_one_process_is_none(cli, monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert cli(generate.main, "a boat", "--out", tmp_path / "a.png", "--num_images", "1").code == 0


@pytest.mark.slow
def test_torchrun_itself(tmp_path):
    def run(processes, *arguments):
        launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
        command = [*launcher, "--master_port=29611", "-m", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    two = run(2, "dalle_ppo.train", *tiny_arguments(tmp_path / "run"))
    assert two.returncode != 0 and two.stderr.count("error: started in 2 processes") == 1
    assert not list(tmp_path.iterdir())
    picture = ("a boat", "--out", tmp_path / "a.png", "--num_images", 1)
    assert run(1, "dalle_ppo.generate", *picture).returncode == 0 and (tmp_path / "a.png").is_file()
