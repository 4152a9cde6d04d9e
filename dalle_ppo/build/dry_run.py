"""What `train --dry_run` looks at beyond what every run checks: captions, disk space and memory."""

import os
from collections.abc import Mapping
from functools import partial
from types import CellType, FunctionType, MethodType, ModuleType

import torch
from torch import nn

from dalle_ppo.build.room import check_room
from dalle_ppo.training.memory import gb, predict_memory
from dalle_ppo.training.trainer import Trainer


def dry_run(trainer: Trainer, measures: object = None, overwrite: bool = False) -> str:
    """Reads a batch of captions, and predicts disk space and memory; trains and writes nothing.

    Args:
        trainer: ready to run, from where it will begin; its captions move on by a batch.
        measures: of the evaluation; only the networks that they hold count.
        overwrite: whether the run in the folder will be removed first.

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
    room = check_room(trainer, overwrite).line()
    lines = [f"captions: read {len(records)}, such as {first!r}", room, str(memory)]
    available = memory_of(trainer.family.device)
    if available is not None and memory.peak > available:
        lines.append(
            f"this is more than the {gb(available)} GB of {trainer.family.device}: lower "
            "update.microbatch_size, or set update.gradient_checkpointing and update.logits_chunk auto; "
            "rollout.memory_gb bounds drawing"
        )
    return "\n".join(lines)


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
