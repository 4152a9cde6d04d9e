"""What several tests share: one tiny run, the command lines, and how Triton runs where there is no GPU."""

import os

# Before torch is imported. The tests' networks are so small that a second thread saves no time; beside other
# programs, threads that wait for each other in a loop make single tests up to 40 times as slow.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch
from tiny_runs import SessionCapture, TinyRun, call, tiny_arguments

# Before anything imports Triton: as its functions are defined, they are made for its interpreter or a GPU.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture
def cli(capsys):
    """`cli(main, *arguments) -> Outcome`."""
    return lambda main, *argv: call(main, list(argv), capsys)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory, request) -> TinyRun:
    from dalle_ppo import train
    from dalle_ppo.build import trainer as build

    run_dir = tmp_path_factory.mktemp("shared") / "tiny"
    built, original = [], build.build_trainer

    def kept(*args, **settings):
        built.append(original(*args, **settings))
        return built[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "build_trainer", kept)
        outcome = call(train.main, tiny_arguments(run_dir), SessionCapture(request))
    assert outcome.code == 0, outcome.err
    (trainer,) = built
    return TinyRun(
        run_dir, outcome, trainer.networks.reference.state_dict(), trainer.actor.module.state_dict()
    )
