"""What `train --dry_run` looks at beyond what every run checks: captions, disk space and memory."""

import os
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import CellType, FunctionType, MethodType, ModuleType

import torch
from torch import nn

from dalle_ppo.training.checkpointing import learner_state
from dalle_ppo.training.eight_bit import state_bytes
from dalle_ppo.training.memory import gb, predict_memory
from dalle_ppo.training.trainer import Trainer


def dry_run(trainer: Trainer, measures: object = None) -> str:
    """Reads a batch of captions, and predicts disk space and memory; trains and writes nothing.

    Args:
        trainer: ready to run; its captions move on by a batch.
        measures: of the evaluation; only the networks that they hold count.

    Returns:
        Lines for the user.

    Raises:
        ValueError: the captions cannot be read, or the folder cannot be written to or is too small.
    """
    records = trainer.captions.next_batch(trainer.config.captions_per_iteration)
    first = records[0].text if len(records[0].text) <= 60 else records[0].text[:57] + "..."
    memory = predict_memory(
        trainer.config,
        trainer.networks,
        trainer.memory_plan(),
        {"rewards": network_bytes([trainer.reward, measures])},
        trainer.team.size,
    )
    lines = [f"captions: read {len(records)}, such as {first!r}", disk_space(trainer), str(memory)]
    available = memory_of(trainer.family.device)
    if available is not None and memory.peak > available:
        lines.append(
            f"this is more than the {gb(available)} GB of {trainer.family.device}: lower "
            "update.microbatch_size, or set update.gradient_checkpointing and update.logits_chunk auto; "
            "rollout.memory_gb bounds drawing"
        )
    return "\n".join(lines)


def disk_space(trainer: Trainer) -> str:
    """One line: what checkpoints take and what is free.

    Raises:
        ValueError: it is not enough, or the folder is read-only.
    """
    config = trainer.config
    needed = checkpoint_bytes(trainer) * (config.keep_checkpoints + 1)  # the new one beside those to keep
    folder = existing(trainer.run_dir)
    if not os.access(folder, os.W_OK):
        raise ValueError(f"run_dir: {trainer.run_dir} cannot be written to; name another folder")
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(
            f"run_dir: {trainer.run_dir} has {gb(free)} GB of free disk space, but {config.keep_checkpoints} "
            f"checkpoints and a new one need {gb(needed)} GB; lower keep_checkpoints, or name another folder"
        )
    return f"disk: checkpoints need {gb(needed)} GB of the {gb(free)} GB that are free"


def checkpoint_bytes(trainer: Trainer) -> int:
    """Bytes of a checkpoint after the first step: weights and optimiser states of what is trained."""
    tensors, _ = learner_state(trainer.actor, trainer.critic)
    weights = sum(t.nbytes for name in ("policy", "critic") for t in tensors.get(name, {}).values())
    learners = [(trainer.actor, trainer.config.actor.optimizer)]
    if trainer.critic is not None:
        learners.append((trainer.critic, trainer.config.critic.optimizer))
    for learner, optimizer in learners:
        weights += state_bytes([p for p in learner.module.parameters() if p.requires_grad], optimizer)
    return weights


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def network_bytes(root: object) -> int:
    """Bytes of all networks of torch's that an object holds, however deep.

    Terms of a reward are functions and keep their networks as they like: in attributes, closures or partials.
    """
    tensors, seen, left = {}, set(), [root]
    while left:
        found = left.pop()
        if id(found) in seen or isinstance(found, (str, bytes, type, ModuleType)):
            continue
        seen.add(id(found))
        if isinstance(found, nn.Module):
            tensors |= {id(t): t for t in [*found.parameters(), *found.buffers()]}
        else:
            left += held_by(found)
    return sum(t.nbytes for t in tensors.values())


def held_by(found: object) -> list[object]:
    """What an object holds itself; of a function only what it was made with, not its module's globals."""
    if isinstance(found, Mapping):
        return list(found.values())
    if isinstance(found, (list, tuple, set, frozenset)):
        return list(found)
    if isinstance(found, partial):
        return [found.func, *found.args, *found.keywords.values()]
    if isinstance(found, MethodType):
        return [found.__self__]
    if isinstance(found, FunctionType):
        filled = [cell for cell in found.__closure__ or () if cell != CellType()]
        return [*(cell.cell_contents for cell in filled), *(found.__defaults__ or ())]
    return list(getattr(found, "__dict__", {}).values())


def memory_of(device: torch.device) -> int | None:
    """Bytes of memory of a device; None if the system does not say."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
