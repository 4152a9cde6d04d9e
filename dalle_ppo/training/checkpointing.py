"""What a training checkpoint holds, and how training resumes from it."""

from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dalle_ppo.base.team import Team
from dalle_ppo.config.settings import Config
from dalle_ppo.models.adapters import adapter_config, adapter_state, is_adapted, load_adapter
from dalle_ppo.models.sharding import divided_statistics, divided_weights, is_sharded, whole
from dalle_ppo.rl.advantages import PromptStatistics
from dalle_ppo.runs.checkpoints import ADAPTER_CONFIG, Checkpoint, flatten_optimizer, restore_optimizer
from dalle_ppo.runs.space import bytes_of
from dalle_ppo.training.eight_bit import EIGHT_BIT, state_bytes
from dalle_ppo.training.optim import Learner
from dalle_ppo.training.progress import Progress

SECTIONS = {"policy": "actor", "critic": "critic"}
"""Section of the settings of each network, by its name in a checkpoint."""
ADAPTED_GROUPS = {"policy": "adapter_model", "critic": "critic"}
"""What a checkpoint calls a network's tensors if only adapters are saved; the first one is peft's name."""
ADAPTER_CONFIGS = {"policy": ADAPTER_CONFIG, "critic": "critic_adapter_config"}


LearnerState = tuple[dict[str, dict[str, Tensor]], dict[str, Any]]
"""Groups of tensors by name, and the JSON-able rest."""


def run_state(trainer: Any, learners: LearnerState) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Everything needed to resume a Trainer: groups of tensors by name, and the JSON-able rest.

    Args:
        trainer: between two iterations.
        learners: from `whole_learners`.
    """
    tensors, optimizers = learners
    progress = trainer.progress.to_dict()
    state = {
        "progress": progress,
        "best": progress["best"],
        "captions": trainer.captions.state_dict(),
        "reference_sha256": trainer.reference_sha256,
        **settings_state(trainer.config),
        **optimizers,
    }
    if len(trainer.buffer):
        tensors["replay"], state["replay"] = trainer.buffer.tensors, trainer.buffer.texts
    return tensors, state


def whole_learners(actor: Learner, critic: Learner | None, team: Team) -> LearnerState | None:
    """`learner_state` for the first process to write; None in the others.

    Networks that processes hold in parts are put together in its memory, one tensor after the other.
    """
    if not is_sharded(actor.module):
        return learner_state(actor, critic) if team.is_first else None
    groups, state = learner_state(actor, critic)
    for tensors in groups.values():
        for name in list(tensors):
            tensor = whole(tensors.pop(name))
            if team.is_first:
                tensors[name] = tensor.cpu()
    return (groups, state) if team.is_first else None


def learner_state(actor: Learner, critic: Learner | None) -> LearnerState:
    """Weights and optimisers: groups of tensors by name, and the JSON-serialisable rest of the optimisers."""
    tensors, state = {}, {}
    for name, learner in (("policy", actor), ("critic", critic)):
        if learner is not None:
            adapted = is_adapted(learner.module)
            group = ADAPTED_GROUPS[name] if adapted else name
            tensors[group] = saved_weights(learner.module)
            if adapted:
                state[ADAPTER_CONFIGS[name]] = adapter_config(learner.module)
            key = f"{name}_optimizer"
            tensors[key], state[key] = flatten_optimizer(learner.optimizer)
    return tensors, state


def saved_weights(module: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint holds of a network: of an adapted one, the adapters alone."""
    return adapter_state(module) if is_adapted(module) else module.state_dict()


def expected_bytes(actor: Learner, critic: Learner | None) -> int:
    """About how large a checkpoint will be, also before optimisers have statistics.

    It holds the networks, of adapted ones the adapters alone, and statistics of what is trained.
    """
    learners = [learner for learner in (actor, critic) if learner is not None]
    weights = {str(number): saved_weights(learner.module) for number, learner in enumerate(learners)}
    statistics = 0
    for learner in learners:
        trained = [p for p in learner.module.parameters() if p.requires_grad]
        statistics += state_bytes(trained, optimizer_kind(learner))
    return bytes_of(weights) + statistics


def settings_state(config: Config) -> dict[str, Any]:
    """What a checkpoint records about the settings it was made with."""
    return {
        "policy_settings": asdict(config.policy),
        "kl_coef_is_steered": config.kl.target is not None,
    }


def shared_checkpoint(
    checkpoint: Checkpoint | None, team: Team, actor: Learner, critic: Learner | None
) -> Checkpoint | None:
    """The checkpoint of the first process, in all processes: only its machine needs the run's folder.

    The others keep their part of what they hold in parts, tensor by tensor: all of it in each process may be
    more than a machine's memory.

    Args:
        checkpoint: what the first process has loaded, or None; ignored in the others.
        team: the processes.
        actor, critic: of this process.
    """
    if team.size == 1:
        return checkpoint
    facts = None if checkpoint is None else (checkpoint.iteration, list(checkpoint.tensors), checkpoint.state)
    facts = team.gather(facts)[0]
    if facts is None:
        return None
    iteration, names, state = facts
    tensors = {}
    for name in names:
        sent = checkpoint.tensors[name] if team.is_first else None
        tensors[name] = team.send_tensors(sent, partial(_own_part, name, actor, critic))
    return Checkpoint(iteration, tensors, state)


def _own_part(group: str, actor: Learner, critic: Learner | None, name: str, tensor: Tensor) -> Tensor:
    """What this process holds of a tensor of a checkpoint's group."""
    learner = {"policy": actor, "critic": critic}.get(group.removesuffix("_optimizer"))
    if learner is None:
        return tensor
    if group.endswith("_optimizer"):
        return divided_statistics({name: tensor}, parameters_of(learner))[name]
    return divided_weights({name: tensor}, learner.module)[name]


def parameters_of(learner: Learner) -> list[Tensor]:
    """The parameters of an optimiser, in the order of its state."""
    return [p for group in learner.optimizer.param_groups for p in group["params"]]


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


def _restore_weights(module: nn.Module, checkpoint: Checkpoint, name: str) -> None:
    """Fills a network with saved weights.

    Raises:
        ValueError: the checkpoint was written with an adapter and the settings have none, or the other way
            round, or the adapters differ.
    """
    section, adapted = SECTIONS[name], is_adapted(module)
    config = checkpoint.state.get(ADAPTER_CONFIGS[name])
    if adapted != (config is not None):
        now, then = ("lora", "none") if adapted else ("none", "lora")
        raise ValueError(
            f"{section}.adapter is {now}, but the checkpoint was written with {then}; resume with "
            f"--{section}.adapter {then}, or start a new run"
        )
    if adapted:
        load_adapter(module, checkpoint.tensors[ADAPTED_GROUPS[name]], config, section)
    else:
        module.load_state_dict(divided_weights(checkpoint.tensors[name], module))


def _restore(learner: Learner, checkpoint: Checkpoint, name: str) -> None:
    """Restores a network and its optimiser's state; the optimiser keeps the current settings."""
    _check_kind(learner, checkpoint, name)
    _restore_weights(learner.module, checkpoint, name)
    settings = [(group["weight_decay"], group["eps"]) for group in learner.optimizer.param_groups]
    key = f"{name}_optimizer"
    statistics = divided_statistics(checkpoint.tensors[key], parameters_of(learner))
    restore_optimizer(learner.optimizer, statistics, checkpoint.state[key])
    for group, (weight_decay, eps) in zip(learner.optimizer.param_groups, settings, strict=True):
        group["weight_decay"], group["eps"] = weight_decay, eps


def optimizer_kind(learner: Learner) -> str:
    """The value of `actor.optimizer` or `critic.optimizer` that made this one."""
    return "adamw" if isinstance(learner.optimizer, torch.optim.AdamW) else EIGHT_BIT


def _check_kind(learner: Learner, checkpoint: Checkpoint, name: str) -> None:
    """Refuses the state of another optimiser.

    Raises:
        ValueError: the statistics have 8 bits and should not, or the other way round.
    """
    names = checkpoint.tensors[f"{name}_optimizer"]
    saved = EIGHT_BIT if any(key.endswith(".state1") for key in names) else "adamw"
    now = optimizer_kind(learner)
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
