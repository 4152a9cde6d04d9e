"""`torchrun -m dalle_ppo.train`: real launchers, a lost process, and checkpoints that know no processes."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tiny_runs import tiny_arguments

from dalle_ppo.runs.checkpoints import latest_checkpoint
from dalle_ppo.runs.metrics import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="needs signals")]
ROOT = Path(__file__).parent.parent.parent
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
TRAIN = ("-m", "dalle_ppo.train")
LAUNCH = (sys.executable, "-m", "torch.distributed.run")
FEW = {
    "num_iterations": 3,
    "checkpoint_every": 1,
    "evaluation__at_end": "false",
    "actor__schedule": "constant",
}


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def torchrun(size: int) -> tuple[str, ...]:
    return (*LAUNCH, f"--nproc_per_node={size}", f"--master_port={free_port()}", *TRAIN)


def run(command: tuple, *arguments, **options) -> subprocess.CompletedProcess:
    whole = [*command, *map(str, arguments)]
    return subprocess.run(whole, capture_output=True, text=True, check=False, env=ENVIRONMENT, **options)


def errors(text: str) -> list[str]:
    return [line for line in text.replace("\r", "\n").splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize("shard", ["none", "full"])
def test_two_processes_resume_what_one_began_and_the_other_way_round(tmp_path, shard):
    straight, mixed = tmp_path / "straight", tmp_path / "mixed"
    alone, few = (sys.executable, *TRAIN), FEW | {"update__shard": shard}
    assert run(alone, *tiny_arguments(straight, **few)).returncode == 0
    assert run(alone, *tiny_arguments(mixed, **few | {"num_iterations": 1})).returncode == 0
    for command, until in ((torchrun(2), 2), (alone, 3)):
        ended = run(command, "--run_dir", mixed, "--resume", "--num_iterations", until)
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.count(f"{until} iterations of 8 images") == 1
    rows = [read_metrics(folder / "metrics.jsonl") for folder in (straight, mixed)]
    assert [len(of_run) for of_run in rows] == [3, 3]
    for one, other in zip(*rows, strict=True):
        assert one["captions/drawn"] == other["captions/drawn"]
        for name in ("reward_mean", "kl", "entropy", "reward_scale", "policy_loss"):
            assert other[name] == pytest.approx(one[name], rel=2e-3, abs=1e-4), (one["iteration"], name)


@pytest.mark.parametrize("shard", ["none", "full"])
def test_a_killed_process_ends_the_run_which_then_resumes(tmp_path, shard):
    folder = tmp_path / "run"
    more = {"num_iterations": 1000, "update__shard": shard}
    command = [*torchrun(2), *tiny_arguments(folder, **FEW | more)]
    begun = (folder / "checkpoints" / "step_000002").exists
    with launched(command, tmp_path / "err", begun) as launcher:
        began = time.monotonic()
        os.kill(worker_of(launcher.pid, rank=1), signal.SIGKILL)
        assert launcher.wait(60) != 0
        assert time.monotonic() - began < 30
    lines = errors((tmp_path / "err").read_text())
    assert len(lines) == 1 and "process 1 of 2 has ended" in lines[0] and "--resume" in lines[0]
    assert f'File "{ROOT}' not in (tmp_path / "err").read_text(), "a traceback that is not the launcher's"
    done = int(latest_checkpoint(folder).name.removeprefix("step_"))
    more = ("--run_dir", folder, "--resume", "--num_iterations", done + 1)
    assert run((sys.executable, *TRAIN), *more).returncode == 0
    assert len(read_metrics(folder / "metrics.jsonl")) == done + 1


def test_a_signal_to_one_process_saves_the_run_which_then_resumes(tmp_path):
    folder = tmp_path / "a run"
    more = {"num_iterations": 1000, "checkpoint_every": 1000}
    command = [*torchrun(2), *tiny_arguments(folder, **FEW | more)]
    with launched(
        command, tmp_path / "err", lambda: len(read_metrics(folder / "metrics.jsonl")) >= 2
    ) as launcher:
        os.kill(worker_of(launcher.pid, rank=1), signal.SIGTERM)
        assert launcher.wait(40) != 0
    printed = (tmp_path / "err").read_text()
    newest = latest_checkpoint(folder)
    assert newest is not None and f'File "{ROOT}' not in printed and not errors(printed)
    assert printed.count("exitcode  : 143") == 2, "torchrun's own report"
    said = [line for line in printed.replace("\r", "\n").splitlines() if line.startswith("stopped by")]
    command = f"torchrun --nproc_per_node 2 -m dalle_ppo.train --run_dir '{folder}' --resume"
    assert said == [f"stopped by SIGTERM; the newest checkpoint is {newest}; go on with: {command}"]
    done = int(newest.name.removeprefix("step_"))
    more = ("--run_dir", folder, "--resume", "--num_iterations", done + 1)
    assert run((sys.executable, *TRAIN), *more).returncode == 0
    assert len(read_metrics(folder / "metrics.jsonl")) == done + 1


@contextmanager
def launched(command: list[str], err: Path, begun: Callable[[], bool]) -> Iterator[subprocess.Popen]:
    """A launcher whose run has begun; what it and its workers say on stderr goes into a file.

    Workers that outlived the launcher would keep a pipe open.
    """
    with err.open("w") as file, subprocess.Popen(command, stderr=file, env=ENVIRONMENT) as launcher:
        try:
            end = time.monotonic() + 240
            while not begun():
                assert launcher.poll() is None and time.monotonic() < end
                time.sleep(0.1)
            yield launcher
        finally:
            launcher.terminate()


def worker_of(launcher: int, rank: int) -> int:
    """The process id of a launcher's worker."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if parent == launcher and f"RANK={rank}".encode() in variables:
            return int(folder.name)
    raise AssertionError(f"no worker with rank {rank}")


def test_a_signal_in_the_evaluation_of_two_processes_keeps_what_was_drawn(tmp_path):
    """Long before the grace period is over."""
    folder = tmp_path / "run"
    more = {"num_iterations": 1, "evaluation__at_end": "true", "evaluation__num_captions": 2000}
    more |= {"evaluation__batch_size": 8}
    command = [*torchrun(2), *tiny_arguments(folder, **FEW | more)]

    def begun() -> bool:
        return any(folder.glob("evaluation/batches/reference_*/000001.npz"))

    with launched(command, tmp_path / "err", begun) as launcher:
        os.kill(worker_of(launcher.pid, rank=1), signal.SIGTERM)
        began = time.monotonic()
        assert launcher.wait(40) != 0
        assert time.monotonic() - began < 20
    printed = (tmp_path / "err").read_text()
    assert "stopped by SIGTERM; the newest checkpoint is" in printed and "ended at once" not in printed
    assert not (folder / "evaluation.json").exists()


def test_two_launchers_meet_and_one_of_them_has_the_run(tmp_path):
    """Two machines without a common file system: the folder is on the first process's."""
    meeting = ("--nnodes=2", "--nproc_per_node=1", "--rdzv_backend=c10d", "--rdzv_id=here")
    meeting += (f"--rdzv_endpoint=127.0.0.1:{free_port()}",)
    command = [*LAUNCH, *meeting, *TRAIN, *tiny_arguments("run", **FEW | {"num_iterations": 2})]
    folders = [tmp_path / name for name in ("a", "b")]
    launchers = []
    for folder in folders:
        folder.mkdir()
        launchers.append(
            subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
        )
    outputs = [launcher.communicate(timeout=300)[1] for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0, 0], outputs
    (holder,) = [folder for folder in folders if list(folder.iterdir())]
    assert len(read_metrics(holder / "run" / "metrics.jsonl")) == 2


@pytest.mark.parametrize(
    "of_first, of_second, expected",
    [
        ((), ("--seed", "6"), "process 1 has seed 6, but process 0 has 5"),
        (("--update.minibatch_size", "1"),) * 2 + ("update.minibatch_size is 1, which 2 processes",),
        (("--device", "cuda:0"),) * 2 + ("device is cuda:0; each of 2 processes",),
    ],
)
def test_processes_that_do_not_fit_are_refused_once(tmp_path, of_first, of_second, expected):
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    processes = []
    for rank, more in enumerate((of_first, of_second)):
        command = [sys.executable, *TRAIN, *tiny_arguments(tmp_path / "run", **FEW), *more]
        numbers = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        processes.append(
            subprocess.Popen(command, env=ENVIRONMENT | address | numbers, stderr=subprocess.PIPE, text=True)
        )
    outputs = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2]
    assert expected in outputs[0] and len(outputs[0].strip().splitlines()) == 1 and outputs[1] == ""
    assert not list(tmp_path.iterdir())


def test_other_captions_under_the_same_name_are_refused_once(tmp_path):
    """As on a second machine, where the file of that name may be another one."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    few = FEW | {"captions__source": "own.csv", "evaluation__num_captions": 3}
    processes = []
    for rank, what in enumerate(("a boat", "a car")):
        folder = tmp_path / what
        folder.mkdir()
        lines = ["caption", *(f"{what} number {i}" for i in range(200))]
        (folder / "own.csv").write_text("\n".join(lines), encoding="utf-8")
        command = [sys.executable, *TRAIN, *tiny_arguments("run", **few)]
        numbers = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        environment = ENVIRONMENT | address | numbers
        processes.append(
            subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
        )
    outputs = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], outputs
    assert "process 1 has captions of the samples with the hash" in outputs[0] and outputs[1] == ""
    assert len(outputs[0].strip().splitlines()) == 1
    assert not list(tmp_path.glob("*/run"))
