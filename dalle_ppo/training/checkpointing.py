"""What a training checkpoint holds, and how training resumes from it."""

from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from dalle_ppo.config.settings import Config
from dalle_ppo.rl.advantages import PromptStatistics
from dalle_ppo.runs.checkpoints import Checkpoint, flatten_optimizer, restore_optimizer
from dalle_ppo.training.eight_bit import EIGHT_BIT
from dalle_ppo.training.optim import Learner
from dalle_ppo.training.progress import Progress


def learner_state(
    actor: Learner, critic: Learner | None
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Weights and optimisers: groups of tensors by name, and the JSON-serialisable rest of the optimisers."""
    tensors, state = {}, {}
    for name, learner in (("policy", actor), ("critic", critic)):
        if learner is not None:
            tensors[name] = learner.module.state_dict()
            key = f"{name}_optimizer"
            tensors[key], state[key] = flatten_optimizer(learner.optimizer)
    return tensors, state


def settings_state(config: Config) -> dict[str, Any]:
    """What a checkpoint records about the settings it was made with."""
    return {
        "policy_settings": asdict(config.policy),
        "kl_coef_is_steered": config.kl.target is not None,
    }


def restore_learners(checkpoint: Checkpoint, actor: Learner, critic: Learner | None) -> None:
    """Restores saved weights and optimiser states.

    Raises:
        ValueError: a critic is needed and the checkpoint holds none.
    """
    _restore(actor, checkpoint, "policy")
    if critic is not None:
        if "critic" not in checkpoint.tensors:
            raise ValueError(
                "credit.advantage is gae, but the checkpoint holds no critic; resume with the run's settings"
            )
        _restore(critic, checkpoint, "critic")


def _restore(learner: Learner, checkpoint: Checkpoint, name: str) -> None:
    """Restores a network and its optimiser's state; the optimiser keeps the current settings."""
    _check_kind(learner, checkpoint, name)
    learner.module.load_state_dict(checkpoint.tensors[name])
    settings = [(group["weight_decay"], group["eps"]) for group in learner.optimizer.param_groups]
    key = f"{name}_optimizer"
    restore_optimizer(learner.optimizer, checkpoint.tensors[key], checkpoint.state[key])
    for group, (weight_decay, eps) in zip(learner.optimizer.param_groups, settings, strict=True):
        group["weight_decay"], group["eps"] = weight_decay, eps


def _check_kind(learner: Learner, checkpoint: Checkpoint, name: str) -> None:
    """Refuses the state of another optimiser.

    Raises:
        ValueError: the statistics have 8 bits and should not, or the other way round.
    """
    names = checkpoint.tensors[f"{name}_optimizer"]
    saved = EIGHT_BIT if any(key.endswith(".state1") for key in names) else "adamw"
    now = "adamw" if isinstance(learner.optimizer, torch.optim.AdamW) else EIGHT_BIT
    if names and saved != now:
        setting = f"{'actor' if name == 'policy' else name}.optimizer"
        raise ValueError(
            f"{setting} is {now}, but the checkpoint is one of {saved}; resume with {setting} {saved}"
        )


def restored_progress(checkpoint: Checkpoint, config: Config) -> Progress:
    """The saved progress under the current settings.

    A KL coefficient that was steered keeps its saved value; a fixed one comes from the current settings.
    """
    progress = Progress.from_dict(checkpoint.state["progress"])
    kept, kl, settings = progress.credit, config.kl, config.credit
    statistics = PromptStatistics(
        settings.prompt_buffer_size, settings.prompt_min_count, kept.prompt_statistics.scores
    )
    steered = kl.target is not None and checkpoint.state["kl_coef_is_steered"]
    kl_coef = kept.kl_coef if steered else kl.kl_coef
    progress.credit = replace(kept, kl_coef=kl_coef, prompt_statistics=statistics)
    return progress
