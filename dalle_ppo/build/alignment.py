"""Builds the steps of an alignment: drawing, labels, reward model and training of one run."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

from dalle_ppo.base.atomic import atomic_write
from dalle_ppo.base.child import run_child
from dalle_ppo.build.captions import LABELS_STREAM, build_captions
from dalle_ppo.build.label_steps import LabelStep
from dalle_ppo.build.labels import load_head
from dalle_ppo.build.models import choose_device, find_world, load_model
from dalle_ppo.build.rewards import load_run_clip
from dalle_ppo.build.unsafe import unsafe_detector
from dalle_ppo.config.command_line import to_yaml
from dalle_ppo.config.settings import Config
from dalle_ppo.models.clip_scorer import ClipScorer
from dalle_ppo.preferences.aligning import (
    MODEL_FILE,
    ROUNDS_FOLDER,
    Accuracy,
    AlignSettings,
    Steps,
    intact,
    refuse_other_run,
    refuse_passed,
)
from dalle_ppo.preferences.answer import PictureSet
from dalle_ppo.preferences.choosing import Disagreement
from dalle_ppo.preferences.chosen_sets import ChosenSets, DrawsMany
from dalle_ppo.preferences.drawing import Drawer, DrawOptions, Side
from dalle_ppo.preferences.reward_model.network import FitSettings
from dalle_ppo.preferences.reward_model.training import accuracy_on, train_reward_model
from dalle_ppo.preferences.store import Answer, Store
from dalle_ppo.runs.checkpoints import checkpoint_folders
from dalle_ppo.runs.places import holds_run
from dalle_ppo.runs.provenance import weights_sha256
from dalle_ppo.training.best import check_metric

SETS_AT_ONCE = 25
MOST_DRAWN = 4
"""Sets drawn for each one wanted before giving up, where most hold one picture only."""


@dataclass(frozen=True)
class AlignBuild:
    """What the steps are built from.

    Args:
        config: of the run; its `run_dir` is the alignment's.
        settings: how to alternate.
        fit: how reward models are fitted.
        num_images: pictures in a set.
        seed: of captions and noise of the sets.
        for_people: flag unsafe pictures, which the page blurs.
        choose: from the second round on, three of four sets are chosen where the last reward model's members
            disagree.
    """

    config: Config
    settings: AlignSettings
    fit: FitSettings
    num_images: int = 2
    seed: int = 0
    for_people: bool = False
    choose: bool = False

    @property
    def run_dir(self) -> Path:
        """The run's folder."""
        return Path(self.config.run_dir)


def build_steps(build: AlignBuild, label: LabelStep) -> Steps:
    """The steps of a run's alignment; who labels is given.

    Raises:
        ValueError: the model or its CLIP cannot be loaded, or the folder holds a run that is no alignment.
    """
    refuse_other_run(build.run_dir)  # also before the alignment's lock makes a folder in it
    later = round_config(build, build.run_dir / ROUNDS_FOLDER / MODEL_FILE, 1)
    check_metric(later.keep_best, later)  # and not when the first round has been labelled
    device = choose_device(build.config.device)
    world = find_world(build.config.model.path)
    clip = load_run_clip(build.config.clip, world, device)

    def refit(store: Store, file: Path) -> float:
        numbers = file.with_suffix(".json")
        if numbers.is_file():  # written last: training goes on with the reward that it began with
            with intact(numbers):
                return float(json.loads(numbers.read_text(encoding="utf-8"))["accuracy"]["value"])
        report = train_reward_model(store, file, clip, build.fit, with_curve=False)
        print("\n".join(report.lines()), flush=True)
        return report.accuracy.value

    return Steps(
        draw=lambda store, number: draw_sets(build, store, number, clip),
        label=label,
        refit=refit,
        check=lambda file, store, answers: check_model(file, store, answers, clip),
        train=lambda file, iterations: train_policy(build, file, iterations),
    )


def draw_sets(build: AlignBuild, store: Store, number: int, clip: ClipScorer) -> list[PictureSet]:
    """The sets of a round, from the newest policy of the run; in the first round from the start model.

    Raises:
        ValueError: the policy draws the same picture again and again, or captions cannot be read.
    """
    drawer, wanted = open_drawer(build, store, number, clip.device), build.settings.answers
    if build.choose and number:
        last = build.run_dir / ROUNDS_FOLDER / f"round_{number - 1:03d}" / MODEL_FILE
        choose = Disagreement(load_head(last, clip), store, clip)
        drawer = ChosenSets(drawer, choose, choose.by)
    with tqdm(total=wanted, desc=f"draw round {number}", unit="set", dynamic_ncols=True) as bar:
        return different_sets(drawer, number * wanted, wanted, bar.update)


def different_sets(
    drawer: DrawsMany, first: int, wanted: int, done: Callable[[int], object]
) -> list[PictureSet]:
    """Sets with at least two pictures that differ: about others there is nothing to say.

    Args:
        drawer: draws them.
        first: number of the first set to draw.
        wanted: how many.
        done: is told how many more there are.

    Raises:
        ValueError: most sets hold one picture several times.
    """
    sets, number = [], first
    while len(sets) < wanted:
        if number - first >= MOST_DRAWN * wanted:
            raise ValueError(
                f"{number - first - len(sets)} of {number - first} sets hold one picture several times; the "
                "policy draws hardly anything else for a caption: take an earlier checkpoint, or raise "
                "--policy.temperature or --num_images"
            )
        numbers = range(number, number + min(SETS_AT_ONCE, wanted - len(sets)))
        number += len(numbers)
        drawn = [shown for shown in drawer.draw_many(numbers) if shown.differs]
        sets += drawn
        done(len(drawn))
    return sets


def open_drawer(build: AlignBuild, store: Store, number: int, device: torch.device) -> Drawer:
    """What draws the sets of a round."""
    config = build.config
    start = config.model.path if number == 0 else config.run_dir
    model = load_model(start, device, config.model.revision if number == 0 else None)
    family = model.family(config.policy)
    side = Side(
        "policy", family.sampler_weights(model.decoder), weights_sha256(model.decoder), build.num_images
    )
    detect = None
    if build.for_people:
        detect = unsafe_detector("builtin" if model.world else start, model.world, device)
    return Drawer(
        family,
        [side],
        build_captions(config, build.seed, LABELS_STREAM, "train").next_batch,
        store,
        DrawOptions(build.seed, model.iteration or 0, config.rollout.memory_gb or 4.0),
        detect,
    )


def check_model(file: Path, store: Store, answers: list[Answer], clip: ClipScorer) -> Accuracy:
    """How often a reward model agrees with answers.

    Raises:
        ValueError: it belongs to another CLIP, or the answers decide nothing.
    """
    found = accuracy_on(load_head(file, clip), store, answers, clip)
    return Accuracy(found.value, found.low, found.high)


def train_policy(build: AlignBuild, file: Path, iterations: int) -> None:
    """Trains the run up to an iteration, in a process of its own: a round frees all its memory.

    Raises:
        ValueError: training has failed and has said why, or the run is already further.
        Stopped: a signal came, and training has ended in order.
    """
    done = [iteration for iteration, _ in checkpoint_folders(build.run_dir / "checkpoints")]
    refuse_passed(build.run_dir, max(done, default=0), iterations)
    config = round_config(build, file, iterations)
    path = file.with_name("config.yaml")
    atomic_write(path, to_yaml(config))
    command = [
        sys.executable,
        "-m",
        "dalle_ppo.train",
        "--config",
        str(path),
        "--run_dir",
        str(build.run_dir),
    ]
    if holds_run(build.run_dir):
        command.append("--resume")
    code = run_child(command, lambda: "start the same command again to go on")
    if code:
        raise ValueError(f"dalle_ppo.train ended with exit code {code}; its settings are in {path}")


def round_config(build: AlignBuild, file: Path, iterations: int) -> Config:
    """The settings of a round's training: the run's, with this reward model in every term `preference`.

    A reward without such a term is replaced by one: nothing but the raters' wishes is then rewarded.
    """
    config, last = build.config, build.settings.rounds * build.settings.iterations
    terms = [dict(term) for term in config.reward.terms]
    if not any(term["name"] == "preference" for term in terms):
        terms = [{"name": "preference"}]
    for term in terms:
        if term["name"] == "preference":
            term["reward_model"] = str(file)
    evaluation = replace(config.evaluation, at_end=config.evaluation.at_end and iterations == last)
    return replace(
        config,
        num_iterations=iterations,
        reward=replace(config.reward, terms=terms),
        evaluation=evaluation,
    )


def default_reward(config: Config) -> bool:
    """Whether the settings have no term `preference`, so that one replaces all others."""
    return all(term["name"] != "preference" for term in config.reward.terms)
