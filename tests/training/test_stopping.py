"""A run that is stopped or killed anywhere goes on as if nothing had happened."""

import os
import signal
import time

import pytest
import torch
from stopped_runs import assert_same, at_call, result, trainer_of

from dalle_ppo.base.stopping import Stopped
from dalle_ppo.runs.checkpoints import latest_checkpoint, load_checkpoint
from dalle_ppo.runs.folder import sole_writer
from dalle_ppo.training import stopping
from dalle_ppo.training import trainer as training


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict:
    run_dir = tmp_path_factory.mktemp("alone")
    trainer_of(run_dir).run()
    return result(run_dir)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.01)


SLOW = pytest.mark.slow
STOPS = [
    pytest.param("collect", 4, 2, id="collect"),  # two of samples, two of iterations before it
    pytest.param("shared_reward", 1, 0, id="reward", marks=SLOW),
    pytest.param("shared_score_passes", 5, 3, id="scoring", marks=SLOW),
    # Finished, as it has begun to take steps.
    pytest.param("run_update", 1, 1, id="update"),
    pytest.param("save_checkpoint", 1, 2, id="checkpoint", marks=SLOW),
]


@pytest.mark.parametrize("name, count, saved", STOPS)
def test_sigterm_saves_and_the_run_goes_on_exactly(name, count, saved, alone, tmp_path, monkeypatch):
    trainer = trainer_of(tmp_path)
    with monkeypatch.context() as patch:
        at_call(patch, training, name, count, terminate, after=name == "run_update")
        with pytest.raises(Stopped) as stopped, trainer.signals.caught(lambda: "go on"):
            trainer.run()
    assert stopped.value.exit_code == 143 and str(stopped.value) == "stopped by SIGTERM; go on"
    assert latest_checkpoint(tmp_path).name == f"step_{saved:06d}"
    resumed = trainer_of(tmp_path, resume=True)
    if saved == 0:  # the command line does this
        for path in (tmp_path / "tensorboard").iterdir():
            path.unlink()
    resumed.run()
    assert_same(result(tmp_path), alone)


KILLS = [
    (training, "collect", 5, False),
    (training, "run_update", 4, True),
    (training, "save_checkpoint", 1, True),
    (training, "prune_checkpoints", 1, False),
    (os, "replace", 6, False),
]


@pytest.mark.parametrize("owner, name, count, after", KILLS, ids=[kill[1] for kill in KILLS])
def test_a_kill_loses_nothing(owner, name, count, after, alone, tmp_path, monkeypatch):
    """A process of its own, which the operating system kills without notice."""
    trainer = trainer_of(tmp_path)
    at_call(monkeypatch, owner, name, count, lambda: os.kill(os.getpid(), signal.SIGKILL), after)
    child = os.fork()
    if child == 0:
        trainer.run()
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    monkeypatch.undo()
    with sole_writer(tmp_path):  # as the command does: it removes halves of files
        trainer_of(tmp_path, resume=latest_checkpoint(tmp_path) is not None).run()
    assert_same(result(tmp_path), alone)


def test_a_checkpoint_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    trainer = trainer_of(tmp_path)
    at_call(monkeypatch, training, "collect", 2, terminate)
    monkeypatch.setattr(training, "save_checkpoint", fails)
    words = r"SIGTERM; no checkpoint could be written .*full"
    with pytest.raises(Stopped, match=words), trainer.signals.caught(str):
        trainer.run()


def fails(*args):
    raise OSError(28, "the disk is full")


def test_checkpoints_by_time(alone, tmp_path, monkeypatch):
    """The time is that of a clock which nobody can set back."""
    now = [0.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])
    trainer = trainer_of(tmp_path, checkpoint_every=100, checkpoint_minutes=1.5, keep_checkpoints=9)
    at_call(monkeypatch, training, "run_update", 1, lambda: now.__setitem__(0, 89.0))
    iterate = trainer.iterate

    def slow(writer):
        now[0] += 50
        return iterate(writer)

    monkeypatch.setattr(trainer, "iterate", slow)
    trainer.run()
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    # Seconds after the iterations: 89, 139, 189, 239; the last one is always saved.
    assert names == ["step_000002", "step_000004"]
    assert [path.name for path in sorted((tmp_path / "samples").glob("step*"))] == [
        "step_000000.png",
        "step_000004.png",
    ]


def test_the_best_checkpoint_is_kept_beside_the_newest(tmp_path, monkeypatch):
    values = iter([1.0, 4.0, 3.0, 2.0, 2.5])
    write = training.score_metrics
    monkeypatch.setattr(
        training, "score_metrics", lambda *args: write(*args) | {"unsafe_rate": -next(values)}
    )
    settings = {"num_iterations": 5, "checkpoint_every": 1, "keep_checkpoints": 1}
    trainer_of(tmp_path, **settings, keep_best="unsafe_rate").run()
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["step_000002", "step_000005"]
    state = load_checkpoint(latest_checkpoint(tmp_path)).state
    assert state["best"] == {"iteration": 2, "value": -4.0, "recent": []}


def test_gradients_are_on_after_a_signal_in_the_middle_of_drawing(tmp_path, monkeypatch):
    trainer = trainer_of(tmp_path)
    at_call(monkeypatch, type(trainer.family), "decode", 2, terminate)
    with pytest.raises(Stopped), trainer.signals.caught(str):
        trainer.run()
    assert torch.is_grad_enabled()
