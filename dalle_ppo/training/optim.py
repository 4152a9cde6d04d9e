"""What all training shares: AdamW with decay on matrices only, learners, and schedules."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dalle_ppo.base.team import ALONE, Team
from dalle_ppo.config.actor import ActorConfig
from dalle_ppo.config.critic import CriticConfig
from dalle_ppo.models.sharding import is_sharded, whole
from dalle_ppo.training.eight_bit import EIGHT_BIT, make_adamw_8bit


def make_adamw(
    params: Iterable[nn.Parameter], learning_rate: float, weight_decay: float, **options
) -> torch.optim.AdamW:
    """AdamW over those of `params` that are trainable; norms, biases and gains are not decayed.

    Args:
        params: parameters of one or more modules.
        learning_rate: for all of them.
        weight_decay: for matrices, embeddings and convolutions.
        options: `betas` and `eps`, if other than torch's defaults.
    """
    groups = decay_groups(params, weight_decay)
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True, **options)


def decay_groups(params: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices, which decay, and all others."""
    trained = [p for p in params if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Gives every group the same learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def cosine_learning_rate(step: int, num_steps: int, peak: float, warmup_steps: int = 100) -> float:
    """Linear warm-up to `peak`, then a cosine to zero at `num_steps`."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Learner:
    """A network and its optimiser, with its own learning rate and gradient clip."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    max_grad_norm: float

    def step(self, loss: float, team: Team = ALONE) -> float | None:
        """Adds up the gradients of all processes, clips, steps and clears the gradient.

        Args:
            loss: the loss behind the gradient. Where a clip has switched off the gradient, an infinite loss
                has a finite gradient, so the gradient alone does not show it.
            team: the processes; each has the gradient of its rows.

        Returns:
            The gradient's norm before clipping; None, and no step, if it or the loss is not finite.
        """
        add_gradients(self.module, team)
        norm = whole(nn.utils.clip_grad_norm_(self.module.parameters(), self.max_grad_norm))
        finite = bool(torch.isfinite(norm)) and math.isfinite(loss)
        if finite:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm) if finite else None


def make_learner(module: nn.Module, settings: ActorConfig | CriticConfig) -> Learner:
    """A module with its optimiser over its trainable parameters, by the actor's or critic's settings."""
    if settings.optimizer == EIGHT_BIT:
        groups = decay_groups(module.parameters(), settings.weight_decay)
        optimizer = make_adamw_8bit(groups, settings.learning_rate, eps=settings.adam_eps)
    else:
        optimizer = make_adamw(
            module.parameters(), settings.learning_rate, settings.weight_decay, eps=settings.adam_eps
        )
    return Learner(module, optimizer, settings.max_grad_norm)


def add_gradients(module: nn.Module, team: Team) -> None:
    """Replaces each gradient by its sum over all processes; one that no process has stays None.

    In a network that is divided among them, the backward pass has done so.
    """
    if team.size == 1 or is_sharded(module):
        return
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    has = [parameter.grad is not None for parameter in trained]
    anywhere = [any(flags) for flags in zip(*team.gather(has), strict=True)]
    used = [parameter for parameter, wanted in zip(trained, anywhere, strict=True) if wanted]
    for parameter in used:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    team.add_up([parameter.grad for parameter in used])


LearningRate = Callable[[int], float]


def learning_rates(
    peak: float, warmup: int, schedule: str, num_iterations: int, first: int = 0
) -> LearningRate:
    """Learning rate of each iteration.

    Args:
        peak: the largest learning rate.
        warmup: iterations of linear warm-up to it.
        schedule: "linear" decays to zero at `num_iterations`, during the warm-up too; "constant" does not.
        num_iterations: iterations of the run.
        first: iteration of the first step, from which the warm-up counts.
    """

    def rate(iteration: int) -> float:
        decayed = 1 - iteration / num_iterations if schedule == "linear" else 1.0
        return peak * min(1.0, max(0, iteration - first + 1) / max(1, warmup)) * decayed

    return rate
