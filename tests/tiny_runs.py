"""A run of seconds, and the way to call a command line in this process."""

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

TINY_SETTINGS = {
    "seed": 5,
    "num_iterations": 4,
    "checkpoint_every": 2,
    "rollout.rollout_batch_size": 8,
    "update.minibatch_size": 4,
    "update.microbatch_size": 4,
    "actor.learning_rate": 1e-3,  # large, so that a few steps change what is drawn
    "actor.trainable": "all",  # likewise
    "evaluation.num_captions": 12,
    "evaluation.batch_size": 12,
    # No image counts as unsafe, so that scores differ by their CLIP term and there is something to learn.
    "reward.terms": "[{name: nsfw, unsafe_threshold: 1.0, unsure_threshold: 1.0}, "
    '{name: clip_similarity, weight: 20, only_if: "nsfw <= 1"}]',
}


@dataclass(frozen=True)
class Outcome:
    """How a command line ended, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that a user's mistake costs; progress bars may stand before it."""
        assert "Traceback" not in self.out + self.err
        lines = self.err.replace("\r", "\n").rstrip("\n").split("\n")
        assert lines[-1].startswith("error: ")
        assert sum(line.startswith("error: ") for line in lines) == 1
        return lines[-1]


@dataclass(frozen=True)
class TinyRun:
    """The finished run that tests share: they read it and write elsewhere."""

    run_dir: Path
    outcome: Outcome
    reference_after: dict
    policy_after: dict


class SessionCapture:
    """Reads captured output where pytest's function-scoped capsys cannot: in fixtures of a wider scope."""

    def __init__(self, request: pytest.FixtureRequest):
        self.readouterr = request.config.pluginmanager.getplugin("capturemanager").read_global_capture


def tiny_arguments(run_dir: Path, **changes) -> list[str]:
    """Arguments of dalle_ppo.train for a run of seconds; `changes` use `__` for the dot."""
    settings = TINY_SETTINGS | {key.replace("__", "."): value for key, value in changes.items()}
    settings = {"run_dir": run_dir, **settings}
    return [text for name, value in settings.items() for text in (f"--{name}", str(value))]


def call(main, argv: list[str], capture) -> Outcome:
    """Runs a command line as `python -m` does, in this process.

    Args:
        main: its main function.
        argv: arguments.
        capture: pytest's capsys, or anything with `readouterr`.
    """
    from dalle_ppo.config.command_line import run_main

    capture.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["program", *map(str, argv)])
        with pytest.raises(SystemExit) as exit_info:
            run_main(main)
    printed = capture.readouterr()
    return Outcome(int(exit_info.value.code or 0), printed.out, printed.err)
