"""What an objective is, and how one is found by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from dalle_ppo.config.settings import Config
from dalle_ppo.models.family import LogPiFunction, TokenScores
from dalle_ppo.rl.losses import PolicyLoss
from dalle_ppo.rl.records import Experience
from dalle_ppo.training import objectives
from dalle_ppo.training.credit import CreditState, credit

Loss = Callable[[TokenScores, Experience, Any], PolicyLoss]
"""`(scores by the current weights, the rows, the objective's own settings) -> loss per token`."""


def all_images(experience: Experience, config: Config) -> Experience:
    """The whole batch."""
    return experience


@dataclass(frozen=True)
class Objective:
    """An algorithm: how credit is given and what is minimised. The KL and entropy terms come on top.

    Args:
        loss: computes the loss of a microbatch, [b, T].
        credit: turns scores into advantages and returns, over the whole batch.
        compares_images: whether minibatches must keep the images of a caption together.
        select: the images that an update learns from, after credit.
        draws_from_reference: whether the images come from the reference, by its settings.
        replays: whether images of earlier iterations are learned from again; its settings then have
            `buffer_images` and `replay_images`.
        needs_kl: whether `loss` reads `scores.kl`, by its settings; it is None where nothing needs it.
        extra: functions of the whole log-distribution; `loss` finds their results in `scores.extra`, by name.
    """

    loss: Loss
    credit: Callable[[Experience, Config, CreditState], tuple[Experience, CreditState]] = credit
    compares_images: bool = False
    select: Callable[[Experience, Config], Experience] = all_images
    draws_from_reference: Callable[[Any], bool] = lambda settings: False
    replays: bool = False
    needs_kl: Callable[[Any], bool] = lambda settings: False
    extra: Mapping[str, LogPiFunction] = field(default_factory=dict)


def needs_exact_kl(config: Config, objective: Objective) -> bool:
    """Whether the update computes the exact KL, which takes the reference's states and a pass of its head."""
    kl = config.kl
    in_loss = kl.placement == "loss" and kl.estimator == "exact" and kl.kl_coef > 0
    return in_loss or objective.needs_kl(config.objective_settings)


def find_objective(name: str) -> Objective:
    """The objective in `training/objectives/NAME.py`, for a name that the settings know."""
    return import_module(f"{objectives.__name__}.{name}").OBJECTIVE
