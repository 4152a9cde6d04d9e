"""Alternates between labels and training, so that the reward model has seen what the policy draws now.

A round r:

1. draw sets of pictures from the policy as it is, and have them labelled;
2. check the reward model of round r - 1, which has trained this policy, on these answers, which it has not
   seen: where its accuracy falls below a bound, its reward is no longer what raters like, and the run stops;
3. fit a new reward model on all answers, old and new;
4. train the policy with it for n more iterations.

Each round has a folder with its sets, its reward model and, once it is finished, `round.json`. Every step is
either finished or done again, so a run that was killed goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from dalle_ppo.base.atomic import atomic_write
from dalle_ppo.base.checks import at_least_one
from dalle_ppo.base.one_line import one_line
from dalle_ppo.preferences.answer import PictureSet
from dalle_ppo.preferences.store import Answer, Store
from dalle_ppo.runs.places import holds_run, quoted

ROUNDS_FOLDER = "align"
SETS_FILE, ROUND_FILE, MODEL_FILE = "sets.json", "round.json", "reward_model.safetensors"


@dataclass(frozen=True)
class AlignSettings:
    """How labels and training alternate.

    Args:
        rounds: number of rounds.
        answers: sets labelled in each round.
        iterations: of training in each round.
        min_accuracy: the run stops when the reward model agrees with fewer of the new policy's answers.
    """

    rounds: int = 4
    answers: int = 150
    iterations: int = 20
    min_accuracy: float = 0.6

    def __post_init__(self) -> None:
        at_least_one(self, "", "rounds", "answers", "iterations")
        if not 0 <= self.min_accuracy <= 1:
            raise ValueError(f"--min_accuracy is {self.min_accuracy}; it must lie between 0 and 1")


@dataclass(frozen=True)
class Round:
    """What came of a round; `round.json`.

    Args:
        round: its number, from 0.
        sets: sets that were drawn.
        answers: decided or tied answers to them.
        old_model: accuracy, in 0..1, of the last round's reward model on them; None in the first round.
        old_model_interval: its 95 % interval.
        new_model: held-out accuracy of the new reward model; None if the run stopped.
        iterations: of training, from the start of the run.
        stopped: why the run stopped here; "" if it did not.
    """

    round: int
    sets: int
    answers: int
    old_model: float | None
    old_model_interval: tuple[float, float] | None
    new_model: float | None
    iterations: int
    stopped: str = ""

    def line(self) -> str:
        """For people."""
        parts = [f"round {self.round}: {self.answers} answers to {self.sets} sets"]
        if self.old_model is not None:
            parts.append(f"the last reward model agrees with {self.old_model:.1%} of the new pairs")
        if self.new_model is not None:
            parts.append(f"the new one with {self.new_model:.1%} of held-out pairs")
            parts.append(f"trained to iteration {self.iterations}")
        return "; ".join([*parts, *([f"stopped: {self.stopped}"] if self.stopped else [])])


@dataclass(frozen=True)
class Accuracy:
    """How often a reward model agrees with decided pairs, in 0..1, with a 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Steps:
    """What a round does; each step may be called again after a kill, and then only does what is missing.

    Args:
        draw: `(store, round) -> sets` from the policy as it is now.
        label: `(store, sets, round)`: appends answers to sets that have none; returns when all have one, or
            nobody answers any more.
        refit: `(store, file) -> held-out accuracy`: fits on all answers and writes the reward model.
        check: `(file, store, answers) -> Accuracy` of a reward model on answers.
        train: `(file, iterations)`: trains with this reward model up to that iteration of the run.
    """

    draw: Callable[[Store, int], list[PictureSet]]
    label: Callable[[Store, Sequence[PictureSet], int], object]
    refit: Callable[[Store, Path], float]
    check: Callable[[Path, Store, list[Answer]], Accuracy]
    train: Callable[[Path, int], None]


def align(run_dir: Path, settings: AlignSettings, steps: Steps) -> Iterator[Round]:
    """Runs the rounds that are not finished.

    Args:
        run_dir: the run; labels go to `preferences/`, rounds to `align/`.
        settings: how to alternate.
        steps: what a round does.

    Yields:
        Each round, with those that were finished before.

    Raises:
        ValueError: a step fails, or nobody has answered anything, or the folder holds a run that is no
            alignment, or one that is further than the settings say.
    """
    refuse_other_run(run_dir)
    store, reached = Store(run_dir / "preferences"), 0
    for number in range(settings.rounds):
        folder = run_dir / ROUNDS_FOLDER / f"round_{number:03d}"
        finished = read_round(folder)
        if finished is None:
            refuse_passed(run_dir, reached, (number + 1) * settings.iterations - 1)
            folder.mkdir(parents=True, exist_ok=True)
            finished = _run_round(folder, store, settings, steps)
            atomic_write(folder / ROUND_FILE, json.dumps(asdict(finished), indent=2) + "\n")
        yield finished
        if finished.stopped:
            return
        reached = finished.iterations


def refuse_other_run(run_dir: Path) -> None:
    """Refuses a folder with a run that no alignment has begun, before anything in it is changed.

    Raises:
        ValueError: it holds one.
    """
    if holds_run(run_dir) and not (run_dir / ROUNDS_FOLDER / "round_000").is_dir():
        raise ValueError(
            f"--run_dir: {run_dir} holds a run that was not begun by dalle_ppo.align, which would replace "
            f"its settings; name another folder, with --model.path {quoted(run_dir)} to start from "
            "its policy"
        )


def refuse_passed(run_dir: Path, reached: int, last: int) -> None:
    """Refuses to train a run that is already further than a round would take it.

    Args:
        run_dir: the run.
        reached: its iterations so far.
        last: the most that the round can build on.

    Raises:
        ValueError: it has more; nothing would be trained.
    """
    if reached > last:
        raise ValueError(
            f"--iterations is too small: {run_dir} is at iteration {reached}, which the next round would not "
            "pass; give the --iterations with which the alignment was begun, or name another --run_dir"
        )


def read_round(folder: Path) -> Round | None:
    """The finished round in a folder; None if it is not finished.

    Raises:
        ValueError: its file is damaged.
    """
    path = folder / ROUND_FILE
    if not path.is_file():
        return None
    with intact(path):
        found = Round(**json.loads(path.read_text(encoding="utf-8")))
        found.line()  # which formats all numbers
        if type(found.iterations) is not int or not isinstance(found.stopped, str):
            raise TypeError("iterations or stopped is of the wrong type")
    return found


@contextmanager
def intact(path: Path) -> Iterator[None]:
    """Reads a file of a round in its block.

    Raises:
        ValueError: the block has failed because the file is damaged; names the file and the way out.
    """
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged ({one_line(error)}); remove it to do the round again, or restore it"
        ) from error


def _run_round(folder: Path, store: Store, settings: AlignSettings, steps: Steps) -> Round:
    number = int(folder.name.removeprefix("round_"))
    sets = _sets(folder, store, steps, number)
    steps.label(store, sets, number)
    own = {shown.id for shown in sets}
    answers = [a for a in store.answers() if a.set_id in own and a.kind in ("ranking", "rating")]
    if not answers:
        raise ValueError(
            f"{folder}: none of its {len(sets)} sets has an answer; label them, then start the command again"
        )
    old = None
    if number:
        previous = folder.with_name(f"round_{number - 1:03d}") / MODEL_FILE
        # Sets chosen because the model's members disagree are harder than what it is used on.
        plain = {shown.id for shown in sets if not shown.chosen}
        old = steps.check(previous, store, [a for a in answers if a.set_id in plain] or answers)
        if old.value < settings.min_accuracy:
            return _facts(number, sets, answers, old, settings, stopped=_why(old, settings))
    new = steps.refit(store, folder / MODEL_FILE)
    steps.train(folder / MODEL_FILE, (number + 1) * settings.iterations)
    return _facts(number, sets, answers, old, settings, new=new)


def _facts(number, sets, answers, old, settings, new=None, stopped="") -> Round:
    return Round(
        round=number,
        sets=len(sets),
        answers=len(answers),
        old_model=old.value if old else None,
        old_model_interval=(old.low, old.high) if old else None,
        new_model=new,
        iterations=(number + (new is not None)) * settings.iterations,
        stopped=stopped,
    )


def _why(old: Accuracy, settings: AlignSettings) -> str:
    return (
        f"the reward model that trained this policy agrees with {old.value:.1%} of the answers to its "
        f"pictures (95 % interval {old.low:.1%} to {old.high:.1%}), below --min_accuracy "
        f"{settings.min_accuracy:g}; its reward no longer means what raters like. Take an earlier "
        "checkpoint, and label more sets or train fewer iterations a round"
    )


def _sets(folder: Path, store: Store, steps: Steps, number: int) -> list[PictureSet]:
    """The round's sets: drawn once, because training moves the policy on."""
    path = folder / SETS_FILE
    if path.is_file():
        with intact(path):
            rows = json.loads(path.read_text(encoding="utf-8"))
            if not rows or not isinstance(rows, list):
                raise TypeError("it holds no sets")
            return [_picture_set(row) for row in rows]
    sets = steps.draw(store, number)
    atomic_write(path, json.dumps([asdict(shown) for shown in sets], indent=1) + "\n")
    return sets


def _picture_set(row: dict) -> PictureSet:
    texts = row["id"], row["caption"], *row["images"]
    if not isinstance(row["images"], list) or not all(isinstance(text, str) for text in texts):
        raise TypeError("id, caption or images is of the wrong type")
    return PictureSet(row["id"], row["caption"], tuple(row["images"]), row.get("chosen", False))
