"""Faults of disks, clocks and files, each with what a run promises and keeps."""

import errno
import os
import shutil
import subprocess
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stopped_runs import assert_same, at_call, result, trainer_of

from dalle_ppo import train
from dalle_ppo.build.room import check_room
from dalle_ppo.runs import checkpoints, space
from dalle_ppo.runs.checkpoints import latest_checkpoint, load_checkpoint
from dalle_ppo.runs.metrics import MetricsWriter, read_metrics
from dalle_ppo.training import trainer as training


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict:
    run_dir = tmp_path_factory.mktemp("alone")
    trainer_of(run_dir).run()
    return result(run_dir)


SLOW = pytest.mark.slow
FAILING = [
    pytest.param("metrics", errno.ENOSPC, id="metrics"),
    pytest.param("weights", errno.EIO, id="weights"),
    pytest.param("flush", errno.EIO, id="flush", marks=SLOW),
    pytest.param("rename", errno.EROFS, id="rename", marks=SLOW),
    pytest.param("picture", errno.ENOSPC, id="picture", marks=SLOW),
]


def failing(monkeypatch, place: str, number: int) -> None:
    """From the third iteration on, a disk refuses one kind of write."""

    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number), "a file")

    def half_a_line(self, metrics):
        with self.path.open("a") as file:
            file.write('{"iteration": 2, "ima')
        fail()

    owner, name, function = {
        "metrics": (MetricsWriter, "write", half_a_line),
        "weights": (checkpoints, "save_tensors", fail),
        "flush": (checkpoints, "flush", fail),
        "rename": (os, "replace", fail),
        "picture": (training, "save_grid", fail),
    }[place]
    at_call(monkeypatch, training, "run_update", 3, lambda: monkeypatch.setattr(owner, name, function))


@pytest.mark.parametrize("place, number", FAILING)
def test_a_disk_that_fails_ends_the_run_and_costs_nothing_saved(place, number, alone, tmp_path, monkeypatch):
    """Promise: the error names the file, what was saved is whole, and the run goes on exactly."""
    trainer = trainer_of(tmp_path)
    with monkeypatch.context() as patch:
        failing(patch, place, number)
        with pytest.raises(OSError, match="a file") as caught:
            trainer.run()
    assert caught.value.errno == number
    assert latest_checkpoint(tmp_path).name == ("step_000004" if place == "picture" else "step_000002")
    trainer_of(tmp_path, resume=True).run()
    assert_same(result(tmp_path), alone)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root can mount a file system")
@pytest.mark.parametrize("megabytes", [pytest.param(0.12, marks=SLOW), 0.2])
def test_a_file_system_that_is_really_full(megabytes, alone, tmp_path):
    """Promise: as above, whichever writer meets it first, TensorBoard's thread too; and nothing hangs."""
    small, copy = tmp_path / "small", tmp_path / "copy"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={int(megabytes * 2**20)}", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this machine does not allow mounts")
    try:
        with pytest.raises((OSError, ValueError), match=r"(?i)no space|MB of the disk"):
            trainer_of(small / "run").run()
        shutil.copytree(small / "run", copy)
    finally:
        subprocess.run(["umount", str(small)], check=True)
    resumed = latest_checkpoint(copy) is not None
    if not resumed:
        shutil.rmtree(copy / "tensorboard", ignore_errors=True)
    trainer_of(copy, resume=resumed).run()
    assert_same(result(copy), alone)


def test_space_is_checked_before_a_checkpoint_needs_it(alone, tmp_path, monkeypatch):
    """Promise: too little is said at the start, or before anything is written; the run goes on exactly."""
    usage = shutil.disk_usage(tmp_path)
    free = [10**12]
    monkeypatch.setattr(space.shutil, "disk_usage", lambda folder: usage._replace(free=free[0]))
    trainer = trainer_of(tmp_path)
    at_call(monkeypatch, training, "run_update", 3, lambda: free.__setitem__(0, 1000))
    with pytest.raises(ValueError, match=r"checkpoints: a checkpoint needs \d+ MB, but only 0 MB") as caught:
        trainer.run()
    assert "\n" not in str(caught.value) and "--resume" in str(caught.value)
    assert os.listdir(tmp_path / "checkpoints") == ["step_000002"]
    trainer = trainer_of(tmp_path)
    with pytest.raises(ValueError, match="a checkpoint needs"):
        check_room(trainer)
    needed = sum(f.stat().st_size for f in (tmp_path / "checkpoints" / "step_000002").iterdir())
    free[0] = 10**9
    check_room(trainer)
    estimated = training_bytes(trainer)
    assert 0.9 * needed < estimated < 1.1 * needed + 2 * space.STATE_BYTES
    free[0] = int(1.5 * estimated)
    with pytest.warns(UserWarning, match="the next 2 checkpoints need"):  # one is there, and two are kept
        check_room(trainer)
    free[0] = 10**12
    trainer_of(tmp_path, resume=True).run()
    assert_same(result(tmp_path), alone)


def training_bytes(trainer) -> int:
    from dalle_ppo.training.checkpointing import expected_bytes

    return expected_bytes(trainer.actor, trainer.critic)


@pytest.fixture(scope="module")
def half(tmp_path_factory) -> Path:
    """A run that ended in its fourth iteration, with checkpoints of the first and second."""
    run_dir = tmp_path_factory.mktemp("half")
    trainer = trainer_of(run_dir)
    with pytest.MonkeyPatch.context() as patch:
        at_call(patch, training, "collect", 6, stop)
        with pytest.raises(KeyboardInterrupt):
            trainer.run()
    trainer.progress.iteration = 1
    return run_dir


def stop() -> None:
    raise KeyboardInterrupt


def test_metrics_cut_in_mid_line(half, alone, tmp_path):
    """Promise: a cut line after the checkpoint costs nothing; one before it is refused, naming the file."""
    run_dir = Path(shutil.copytree(half, tmp_path / "run"))
    path = run_dir / "metrics.jsonl"
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    assert len(lines) == 3
    path.write_bytes(b"".join(lines[:1]) + lines[1][:40])
    with pytest.raises(ValueError, match=r"metrics\.jsonl: holds 1 iterations, but the checkpoint is at 2"):
        trainer_of(run_dir, resume=True).run()
    path.write_bytes(whole[:-40])
    assert len(read_metrics(path)) == 2
    trainer_of(run_dir, resume=True).run()
    assert_same(result(run_dir), alone)


def test_one_flipped_bit_in_the_newest_checkpoint(alone, tmp_path):
    """Promise: it is named and passed over for the one before it; the run goes on exactly from there."""
    trainer_of(tmp_path).run()
    file = tmp_path / "checkpoints" / "step_000004" / "critic_optimizer.safetensors"
    content = bytearray(file.read_bytes())
    content[-9] ^= 16
    file.write_bytes(content)
    with pytest.warns(UserWarning, match=r"step_000004.critic_optimizer\.safetensors.*hash"):
        resumed = trainer_of(tmp_path, resume=True)
    assert resumed.progress.iteration == 2
    resumed.run()
    assert_same(result(tmp_path), alone)


def test_a_clock_that_is_set_back(half, alone, tmp_path, monkeypatch):
    """Promise: the same numbers, and TensorBoard shows each step once, in order."""
    run_dir = Path(shutil.copytree(half, tmp_path / "run"))
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - 86400 * 400)
    trainer_of(run_dir, resume=True).run()
    assert_same(result(run_dir), alone)


@pytest.mark.parametrize("name, count", [pytest.param("run_update", 2, marks=SLOW), ("save_checkpoint", 1)])
def test_a_run_folder_that_is_removed(name, count, tmp_path, monkeypatch):
    """Promise: the run ends with an error that names it, within an iteration, and brings nothing back."""
    run_dir = tmp_path / "run"
    trainer = trainer_of(run_dir, checkpoint_every=1)
    at_call(monkeypatch, training, name, count, lambda: shutil.rmtree(run_dir))
    with pytest.raises(OSError, match="run"):
        trainer.run()
    assert not (run_dir / "metrics.jsonl").exists()


@SLOW
def test_a_run_folder_that_is_moved(alone, tmp_path, monkeypatch):
    """Promise: the run ends; where the folder is now, it goes on exactly."""
    trainer = trainer_of(tmp_path / "run")
    at_call(monkeypatch, training, "run_update", 4, lambda: os.rename(tmp_path / "run", tmp_path / "moved"))
    with pytest.raises(OSError, match="run"):
        trainer.run()
    monkeypatch.undo()
    trainer_of(tmp_path / "moved", resume=True).run()
    assert_same(result(tmp_path / "moved"), alone)


@SLOW
def test_a_caption_shard_that_vanishes(tmp_path, monkeypatch):
    """Promise: the run ends with a line that names the file and a checkpoint, or skips it if told to."""
    shards = tmp_path / "shards"
    settings = {
        "captions.source": str(shards),
        "captions.shares": None,
        "num_iterations": 9,
        "checkpoint_every": 9,
        "evaluation.at_end": False,
    }
    settings = {name.replace(".", "__"): value for name, value in settings.items()}

    def write() -> None:
        shards.mkdir(exist_ok=True)
        for part in range(2):
            texts = [f"a boat {part} {i}" for i in range(30)]
            pq.write_table(pa.table({"caption": texts}), shards / f"part{part}.parquet")

    write()
    trainer_of(tmp_path / "alone", **settings).run()
    trainer = trainer_of(tmp_path / "run", **settings)
    (shards / "part1.parquet").unlink()
    with pytest.raises(ValueError, match=r"part1\.parquet") as caught:
        trainer.run()
    assert "\n" not in str(caught.value)
    assert latest_checkpoint(tmp_path / "run") is not None
    write()
    trainer_of(tmp_path / "run", resume=True, **settings).run()
    policies = [
        load_checkpoint(latest_checkpoint(tmp_path / name)).tensors["policy"] for name in ("run", "alone")
    ]
    assert all(policies[0][name].equal(value) for name, value in policies[1].items())


def test_a_kill_while_the_first_checkpoint_is_written(tmp_path):
    """Promise: the run starts over. One that must have had a checkpoint is refused instead."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"iteration": 0}\n{"iteration": 1}\n')
    train.check_unsaved(tmp_path, checkpoint_every=2)
    path.write_text(path.read_text() + '{"iteration": 2}\n')
    with pytest.raises(ValueError, match=r"3 iterations in metrics\.jsonl but no checkpoint"):
        train.check_unsaved(tmp_path, checkpoint_every=2)


def test_a_resumed_run_may_ask_for_more_checkpoints_than_it_began_with(tmp_path):
    """It ended before its first checkpoint by the settings that it ran with."""
    trainer_of(tmp_path, checkpoint_every=20)
    (tmp_path / "config.yaml").write_text("format: 2\ncheckpoint_every: 20\n")
    (tmp_path / "metrics.jsonl").write_text("".join(f'{{"iteration": {n}}}\n' for n in range(15)))
    flags = {"resume": True, "overwrite": False}
    for _ in range(2):  # a kill after the new settings were written changes nothing
        train.prepare(trainer_of(tmp_path, checkpoint_every=5), flags)
        assert "checkpoint_every: 5" in (tmp_path / "config.yaml").read_text()
    (tmp_path / "metrics.jsonl").write_text("".join(f'{{"iteration": {n}}}\n' for n in range(6)))
    with pytest.raises(ValueError, match=r"6 iterations in metrics\.jsonl but no checkpoint"):
        train.prepare(trainer_of(tmp_path, checkpoint_every=50), flags)


def test_a_kill_while_a_run_is_begun_is_no_dead_end(tmp_path, monkeypatch):
    """Promise: as soon as the settings are there, --resume starts the run."""
    flags = {"resume": False, "overwrite": False}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("dalle_ppo.runs.tensorboard.write_settings", lambda *_: stop())
        train.prepare(trainer_of(tmp_path), flags)
    assert (tmp_path / "config.yaml").is_file()
    train.prepare(trainer_of(tmp_path), flags | {"resume": True})
