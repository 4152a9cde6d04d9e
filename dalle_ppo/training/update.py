"""The optimiser steps on one batch: epochs of minibatches of microbatches.

Losses are summed over microbatches and divided by the minibatch's tokens, so the microbatch size changes
the memory but not the update.
"""

import copy
import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from dalle_ppo.base.halving import Halving
from dalle_ppo.base.stopping import StopSignals
from dalle_ppo.base.team import ALONE, Team
from dalle_ppo.config.settings import Config
from dalle_ppo.models.family import TokenScores
from dalle_ppo.models.sharding import is_sharded
from dalle_ppo.policy.rollout import ALL_AT_ONCE, Means
from dalle_ppo.rl.kl import kl_k2
from dalle_ppo.rl.losses import value_loss
from dalle_ppo.rl.records import Experience
from dalle_ppo.training.anchor import GRADIENTS, anchor_backward
from dalle_ppo.training.objective import Objective, needs_exact_kl
from dalle_ppo.training.optim import Learner
from dalle_ppo.training.scoring import Networks
from dalle_ppo.training.sharing import microbatches, own_rows
from dalle_ppo.training.update_log import PolicyTerms, UpdateLog

PAIR = 2
"""Images that an objective which compares images cannot have in different microbatches."""


@dataclass(frozen=True)
class Step:
    """What an iteration's updates need besides experience and settings.

    Args:
        actor: the policy and its optimiser.
        critic: the critic and its optimiser; None without a critic.
        kl_coef: current weight of the KL.
        train_actor: False while the critic warms up.
        generator: draws the order of the images.
        means: the processes that share each minibatch, and how many images fit.
        signals: may end the updates before the first step.
    """

    actor: Learner
    critic: Learner | None
    kl_coef: float
    train_actor: bool
    generator: torch.Generator
    means: Means = ALL_AT_ONCE
    signals: StopSignals = field(default_factory=StopSignals)


def policy_terms(
    scores: TokenScores, rows: Experience, objective: Objective, config: Config, kl_coef: float
) -> PolicyTerms:
    """The actor's loss for some rows: the objective's, plus the KL and entropy terms that all share.

    Args:
        scores: from the current weights, with gradient.
        rows: the images, with their credit.
        objective: what is minimised.
        config: all settings.
        kl_coef: current weight of the KL.
    """
    policy = objective.loss(scores, rows, config.objective_settings)
    loss, kl_part, entropy_part = policy.loss, None, None
    if rows.token_weights is not None:
        loss = loss * rows.token_weights
    if config.kl.placement == "loss":
        loss = loss + (kl_part := kl_coef * _kl_in_loss(scores, rows, config))
    if config.actor.entropy_coef:
        entropy_part = -config.actor.entropy_coef * scores.entropy
        loss = loss + entropy_part
    return PolicyTerms(loss, policy, kl_part, entropy_part)


def _kl_in_loss(scores: TokenScores, rows: Experience, config: Config) -> Tensor:
    """The KL at each token, [b, T]; 0 where it is not computed because it weighs nothing."""
    if config.kl.estimator == "k2":
        return kl_k2(scores.log_probs, rows.ref_log_probs)
    return torch.zeros_like(scores.log_probs) if scores.kl is None else scores.kl


def run_update(
    networks: Networks, experience: Experience, objective: Objective, config: Config, step: Step
) -> dict[str, float | None]:
    """Epochs of minibatches over one batch; steps the optimisers.

    Args:
        networks: family and reference; the networks that are trained are in `step`.
        experience: scored, with its credit.
        objective: what the actor minimises.
        config: all settings.
        step: learners and everything else for this iteration.

    Returns:
        Metrics of the updates.
    """
    settings, team, halving = config.update, step.means.team, step.means.halving or Halving()
    if objective.compares_images:
        halving.units[GRADIENTS] = PAIR

    def gradients(minibatch: Tensor, sofar: UpdateLog, train_actor: bool, size: int) -> tuple:
        """Gradients of a minibatch, `size` images at a time; returns the log with it, and both losses."""
        log, actor_loss, critic_loss = copy.deepcopy(sofar), 0.0, 0.0
        clear_gradients(step)  # of an attempt that ran out of memory
        of_minibatch = len(minibatch) * experience.tokens.shape[1]
        mine = own_rows(minibatch, experience, objective.compares_images, team)
        for index in microbatches(mine, size, team, is_sharded(step.actor.module)):
            rows, num_tokens = experience.select(index), of_minibatch
            if not len(index):  # a pass that only helps the others: its gradient is 0
                rows, num_tokens = experience.select(first_caption(minibatch, experience)[:size]), math.inf
            if train_actor:
                terms = _actor_backward(networks, rows, objective, config, step, num_tokens)
                actor_loss += log.add_policy(terms, num_tokens)
            if step.critic is not None:
                critic_loss += _critic_backward(networks, rows, config, step.critic, num_tokens)
        if step.critic is not None:
            log.sums["value_loss"] += critic_loss
        return log, actor_loss, critic_loss

    log, train_actor = UpdateLog(), step.train_actor
    for minibatch in minibatches(experience, objective.compares_images, config, step.generator):
        work = partial(gradients, minibatch, log, train_actor)
        with nullcontext() if log.minibatches else step.signals.interruptible():
            log, *losses = team.everywhere(
                partial(halving.run, GRADIENTS, "update.microbatch_size", settings.microbatch_size, work)
            )
        actor_loss, critic_loss = log.end_minibatch(train_actor, *losses, team)
        if train_actor and log.actor_minibatches > 1 and past(settings.target_kl, log.last_approx_kl):
            step.actor.optimizer.zero_grad(set_to_none=True)
            train_actor = False
        if train_actor and networks.anchor is not None:
            policies = step.actor.module, networks.reference
            anchored = networks.anchor, networks.family, policies, settings.microbatch_size, step.generator
            log.anchor_kl.append(anchor_backward(*anchored, replace(step.means, halving=halving), work))
        if train_actor:
            log.add_step("gradient_norm", step.actor.step(actor_loss, team))
        if step.critic is not None:
            log.add_step("critic_gradient_norm", step.critic.step(critic_loss, team))
        if (log.skipped and settings.bad_step == "stop") or (step.critic is None and not train_actor):
            break
    return log.metrics(team)


def first_caption(rows: Tensor, experience: Experience) -> Tensor:
    """Those of `rows`, int64 [b], that show the first one's caption."""
    captions = experience.caption_index[rows]
    return rows[captions == captions[0]]


def clear_gradients(step: Step) -> None:
    """Frees the gradients of all networks that are trained."""
    for learner in (step.actor, step.critic):
        if learner is not None:
            learner.optimizer.zero_grad(set_to_none=True)


def minibatches(
    experience: Experience, together: bool, config: Config, generator: torch.Generator
) -> Iterator[Tensor]:
    """Rows of the minibatches of all epochs, in a new order each epoch.

    Args:
        experience: B images.
        together: keep the images of a caption side by side, and so in one minibatch where its size allows.
        config: only `update` is used.
        generator: draws the order.

    Yields:
        int64, `update.minibatch_size` at a time; the last of an epoch may be shorter.
    """
    count, device = len(experience), experience.tokens.device
    size = config.update.minibatch_size or count
    for _ in range(config.update.epochs):
        if together:
            _, per_caption = experience.caption_index.unique_consecutive(return_counts=True)
            groups = torch.arange(count).split(per_caption.tolist())
            order = torch.cat([groups[i] for i in torch.randperm(len(groups), generator=generator)])
        else:
            order = torch.randperm(count, generator=generator)
        yield from order.to(device).split(size)


def order_generator(seed: int, iteration: int) -> torch.Generator:
    """What draws the order of the images in an iteration's updates."""
    return torch.Generator().manual_seed(seed * 1_000_003 + iteration)


def scoring_order(
    experience: Experience, objective: Objective, config: Config, iteration: int, team: Team = ALONE
) -> list[list[Tensor]] | None:
    """The microbatches in which each process scores a batch before its updates; None if they do not matter.

    In bfloat16 they do: rounding depends on what is computed together. So scoring takes the microbatches of
    the first epoch, and the first ratio is 1. Where the processes' shares of the epoch differ in size, they
    take shares of equal size instead, and the first ratio is 1 up to rounding only. So it is with objectives
    that select or replay: what they learn from is known only after scoring.
    """
    if config.update.dtype == "float32":
        return None
    generator, settings = order_generator(config.seed, iteration), config.update
    size = settings.minibatch_size or len(experience)
    first = minibatches(experience, objective.compares_images, config, generator)
    epoch = list(islice(first, math.ceil(len(experience) / size)))
    orders = []
    for rank in range(team.size):
        member = Team(rank, team.size)
        shares = [own_rows(rows, experience, objective.compares_images, member) for rows in epoch]
        if team.size * sum(map(len, shares)) != len(experience):
            return None
        orders.append([rows for share in shares for rows in share.split(settings.microbatch_size)])
    return orders


def past(target_kl: float | None, approx_kl: float) -> bool:
    """Whether the policy must not take another step."""
    return target_kl is not None and approx_kl > target_kl


def _actor_backward(
    networks: Networks, rows: Experience, objective: Objective, config: Config, step: Step, num_tokens: float
) -> PolicyTerms:
    """Adds the gradient of one microbatch to the actor; returns its losses."""
    scores = networks.family.score(
        step.actor.module,
        rows,
        entropy=bool(config.actor.entropy_coef),
        reference=networks.reference if needs_exact_kl(config, objective) else None,
        extra=objective.extra,
    )
    terms = policy_terms(scores, rows, objective, config, step.kl_coef)
    (terms.loss.sum() / num_tokens).backward()
    return terms


def _critic_backward(
    networks: Networks, rows: Experience, config: Config, critic: Learner, num_tokens: float
) -> float:
    """Adds the gradient of one microbatch to the critic; returns its part of the mean loss."""
    values = networks.family.values(critic.module, rows)
    losses = value_loss(values, rows.values, rows.returns, value_clip=config.critic.value_clip)
    loss = losses.sum() / num_tokens
    loss.backward()
    return float(loss.detach())
