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
from dalle_ppo.config.command_line import lacks_processes, run_main
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
    outcome = cli(generate.main, "a boat", "--out", tmp_path / "a.png")
    assert outcome.code == 2 and not list(tmp_path.iterdir()) and outcome.out == ""
    if rank == 0:
        assert f"started in {size} processes" in outcome.error and "torchrun" in outcome.error
    else:
        assert outcome.err == ""


def test_a_launcher_of_one_process_is_none(cli, monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert cli(generate.main, "a boat", "--out", tmp_path / "a.png", "--num_images", "1").code == 0


def test_accelerate_that_starts_one_process_of_several_is_recognised(monkeypatch, capsys):
    """What accelerate 1.15 sets for `launch --cpu`, with --num_processes 2 and 1, and for `--multi_gpu`."""
    one = {"ACCELERATE_USE_CPU": "True", "ACCELERATE_MIXED_PRECISION": "no"}
    asked_for_two = one | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    two = asked_for_two | {"RANK": "0", "WORLD_SIZE": "2"}
    assert [lacks_processes(found) for found in (one, asked_for_two, two)] == [False, True, False]
    assert not lacks_processes({"MASTER_ADDR": "127.0.0.1"}), "a scheduler may set it"
    for name, value in asked_for_two.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        run_main(train.main, together=True)
    error = capsys.readouterr().err
    assert (
        ended.value.code == 2 and "started one" in error and "--multi_gpu" in error and "\n" not in error[:-1]
    )


def test_mpirun_is_told_what_to_use_instead(monkeypatch, capsys):
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(SystemExit) as ended:
        run_main(train.main, together=True)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.startswith("error: started in 2 processes") and "torchrun" in error
