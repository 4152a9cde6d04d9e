"""Divides the work of an iteration among the processes of a team.

Every process holds the whole batch: numbers per token are small, and credit, objectives and metrics then need
to know nothing of processes. What costs time is divided by rows and joined again: drawing (`policy.rollout`),
rewards, scoring passes and gradients.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from itertools import chain, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from dalle_ppo.base.halving import Halving
from dalle_ppo.base.team import Team, check_same
from dalle_ppo.config.settings import Config
from dalle_ppo.models.sharding import is_sharded, own_part
from dalle_ppo.policy.rollout import Means, as_float
from dalle_ppo.rewards.base import Reward, RewardResult, metadata_of
from dalle_ppo.rewards.groups import caption_groups
from dalle_ppo.rewards.in_parts import score_in_parts
from dalle_ppo.rl.records import Experience
from dalle_ppo.training.anchor import GRADIENTS
from dalle_ppo.training.scoring import SCORING, Networks, score_passes

SCORED = ("old_log_probs", "ref_log_probs", "kl", "entropy", "values", "kl_full", "mass_outside")


def check_divides(config: Config, team: Team) -> None:
    """Refuses a number of processes that cannot share a batch evenly.

    Raises:
        ValueError: it does not divide the captions of an iteration, or the images of a minibatch.
    """
    captions, minibatch = config.captions_per_iteration, config.update.minibatch_size
    if captions % team.size:
        raise ValueError(
            f"{team.size} processes cannot share the {captions} captions of an iteration evenly; set "
            f"rollout.rollout_batch_size to a multiple of {team.size * config.rollout.samples_per_caption}, "
            "or start another number of processes"
        )
    if minibatch is not None and minibatch % team.size:
        raise ValueError(
            f"update.minibatch_size is {minibatch}, which {team.size} processes cannot share evenly; set it "
            f"to a multiple of {team.size}, or start another number of processes"
        )


def means_of(networks: Networks, team: Team) -> Means:
    """With what images are drawn, scored and learned from: the processes, and how many images fit."""
    return Means(team, Halving((SCORING, GRADIENTS) if is_sharded(networks.actor) else ()))


def shared_reward(reward: Reward, config: Config, experience: Experience, means: Means) -> RewardResult:
    """The reward of all images, each process's share computed there.

    A reward that compares images which shares would separate is computed by the first process alone.

    Args:
        reward: scores images.
        config: names the reward's terms.
        experience: the whole batch, drawn.
        means: the processes, and how many images fit.

    Raises:
        ValueError: it failed; all processes raise the same error.
    """
    metadata = metadata_of(experience.tags, experience.caption_ids)
    count, captions, team = len(experience), list(experience.captions), means.team

    def score(rows: slice) -> RewardResult:
        images, halving = as_float(experience.images[rows]), means.halving or Halving()
        return score_in_parts(reward, images, captions[rows], metadata[rows], halving)

    if team.size == 1:
        return score(slice(0, count))
    if count < team.size or _separated(reward, config, captions, team):
        device = experience.images.device
        result = team.on_first(lambda: _moved(score(slice(0, count)), torch.device("cpu")))
        return _moved(result, device)
    return _joined(team.everywhere(lambda: score(team.share(count))), count, team)


def _separated(reward: Reward, config: Config, captions: list[str], team: Team) -> bool:
    """Whether shares would separate images that a term compares."""
    if any(term.own.compares_batch for term in config.reward.parsed):
        return True
    if all(term.images_per_caption == 1 for term in getattr(reward, "terms", ())):
        return False
    bounds = team.bounds(len(captions))
    return not all(_in_one(rows, bounds) for rows in caption_groups(captions))


def _moved(result: RewardResult, device: torch.device) -> RewardResult:
    """The result on a device, without embeddings, which training does not read."""
    parts = {name: part.to(device) for name, part in result.parts.items()}
    values = {name: value.to(device) for name, value in result.values.items()}
    return RewardResult(result.total.to(device), parts, None, values)


def _in_one(rows: list[int], bounds: list[int]) -> bool:
    """Whether all rows lie in one process's share."""
    return any(start <= min(rows) and max(rows) < end for start, end in pairwise(bounds))


def _joined(result: RewardResult, count: int, team: Team) -> RewardResult:
    """The results of all processes; a part that only some report is left out."""
    reported = team.gather((list(result.parts), list(result.values)))
    names = [name for name in reported[0][0] if all(name in parts for parts, _ in reported)]
    return RewardResult(
        team.join(result.total, count),
        {name: team.join(result.parts[name], count) for name in names},
        None,
        {name: team.join(result.values[name], count) for name in reported[0][1]},
    )


def reuses_states(config: Config, team: Team) -> bool:
    """Whether scoring takes the policy's states from the sampler, and does not compute them again."""
    alike = config.rollout.dtype == config.update.dtype == "float32"
    return alike and not config.update.recompute_log_probs and team.size == 1


def shared_score_passes(
    networks: Networks,
    experience: Experience,
    microbatch_size: int,
    keep_reference: bool,
    means: Means,
    order: Sequence[Sequence[Tensor]] | None = None,
) -> Experience:
    """`score_passes` of the whole batch, each process's share computed there.

    Args:
        networks, experience, microbatch_size, keep_reference: as in `score_passes`.
        means: the processes, and how many images fit.
        order: of each process, as in `score_passes`, equally many rows; by default shares in order.
    """
    team, halving = means.team, means.halving
    if team.size == 1:
        own_order = order[0] if order else None
        return score_passes(networks, experience, microbatch_size, keep_reference, own_order, halving)
    count, own_order, back = len(experience), None, slice(None)
    every = torch.arange(count, device=experience.tokens.device)
    rows = every[team.share(count)]
    if order:
        rows, back = torch.cat(list(order[team.rank])), torch.cat([*chain(*order)]).argsort()
        own_order = every[: len(rows)].split([len(part) for part in order[team.rank]])
    kept = len(rows)
    if is_sharded(networks.reference) and count >= team.size:  # equally many passes everywhere
        rows = torch.cat([rows, rows[-1:].expand(-(-count // team.size) - kept)])
    own = experience.select(rows)
    scored = team.everywhere(
        lambda: score_passes(networks, own, microbatch_size, keep_reference, own_order, halving)
    )
    columns = {name: getattr(scored, name) for name in SCORED if getattr(scored, name) is not None}
    whole = {name: team.join(column[:kept], count)[back] for name, column in columns.items()}
    states = map_tensors(scored.reference_states, lambda tensor: team.join(tensor[:kept], count)[back])
    return replace(experience, reference_states=states, **whole)


def fingerprint(module: nn.Module) -> list[int]:
    """A number for each tensor of a module, which changes when any single bit of the tensor does.

    Of a module that processes hold in parts, for each part that this process holds.
    """
    parts = (own_part(tensor) for tensor in module.state_dict().values())
    return [int(torch.hash_tensor(part).view(torch.int64)) if part.numel() else 0 for part in parts]


def check_equal_weights(networks: Networks, team: Team) -> None:
    """Refuses to go on when processes have trained different weights, which nothing else would show.

    Where each holds another part, there is nothing to compare.

    Args:
        networks: of this process.
        team: the processes.

    Raises:
        ValueError: actor or critic differ; names the network and the process.
    """
    if team.size == 1 or is_sharded(networks.actor):
        return
    trained = {"actor": networks.actor, "critic": networks.critic}
    facts = {
        f"weights of the {name} with the hash": sum(fingerprint(module))
        for name, module in trained.items()
        if module is not None
    }
    check_same(team, facts, "continue from the newest checkpoint with --resume, on GPUs of one kind")


def map_tensors(record: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A record of tensors and Nones with a function applied to each tensor; None stays None."""
    if record is None:
        return None
    if isinstance(record, Tensor):
        return function(record)
    assert is_dataclass(record), f"a family's states must be a dataclass of tensors, not {type(record)}"
    return replace(record, **{f.name: map_tensors(getattr(record, f.name), function) for f in fields(record)})


def own_rows(minibatch: Tensor, experience: Experience, together: bool, team: Team) -> Tensor:
    """This process's rows of a minibatch; there may be none.

    Args:
        minibatch: rows of the batch, int64 [b].
        experience: the whole batch.
        together: leave the images of a caption, which are side by side, to one process.
        team: the processes.
    """
    if team.size == 1:
        return minibatch
    if not together:
        return minibatch.tensor_split(team.size)[team.rank]
    _, per_caption = experience.caption_index[minibatch].unique_consecutive(return_counts=True)
    captions = torch.arange(len(per_caption)).tensor_split(team.size)[team.rank]
    mine = torch.isin(torch.arange(len(per_caption)).repeat_interleave(per_caption.cpu()), captions)
    return minibatch[mine.to(minibatch.device)]


def microbatches(rows: Tensor, size: int, team: Team, together: bool) -> list[Tensor]:
    """Rows of each forward pass of this process, at most `size` of them.

    Args:
        rows: of this process, int64; there may be none.
        size: images per pass.
        team: the processes.
        together: give all processes equally many passes, as networks need that they hold in parts; those that
            run out of rows get empty ones.
    """
    parts = list(rows.split(size)) if len(rows) else []
    if together:
        parts += [rows[:0]] * (max(team.gather(len(parts))) - len(parts))
    return parts
