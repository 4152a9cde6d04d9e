"""The two halves of learning from a batch: what every network says of it, and the optimiser steps.

The first half (`score_passes`) runs without gradient over the whole batch; the second (`run_update`) makes
epochs of minibatches of microbatches. Losses are summed over microbatches and divided by the minibatch's
tokens, so the microbatch size changes memory and not the update.
"""

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dalle_ppo.config.settings import Config, CriticConfig, PpoConfig
from dalle_ppo.models.dalle.bart import BartDecoder
from dalle_ppo.models.dalle.critic import Critic
from dalle_ppo.models.dalle.sampling import (
    Prompts,
    gather_log_probs,
    hidden_of_tokens,
    log_pi_of_hidden,
    log_pi_of_tokens,
)
from dalle_ppo.models.policy_settings import PolicySettings
from dalle_ppo.rl.kl import entropy, exact_kl, kl_k2
from dalle_ppo.rl.losses import PolicyLoss, ppo_loss, score_function_loss, value_loss
from dalle_ppo.rl.records import HiddenStates, RolloutBatch, ScoredBatch, UpdateTargets
from dalle_ppo.training.optim import make_adamw


@dataclass(frozen=True)
class Learner:
    """A network and its optimiser; learning rate and gradient clip are its own."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    max_grad_norm: float

    def step(self, loss: float) -> float | None:
        """Clips, steps and clears the gradient.

        Args:
            loss: that the gradient is of. Where a clip has switched off the gradient, an infinite one has a
                finite gradient.

        Returns:
            The gradient's norm before clipping; None, and no step, if it or the loss is not finite.
        """
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.max_grad_norm)
        finite = bool(torch.isfinite(norm)) and math.isfinite(loss)
        if finite:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm) if finite else None


def make_learner(module: nn.Module, settings: PpoConfig | CriticConfig) -> Learner:
    """A module with AdamW over its trainable parameters, by the settings of the actor or of the critic."""
    optimizer = make_adamw(
        module.parameters(), settings.learning_rate, settings.weight_decay, eps=settings.adam_eps
    )
    return Learner(module, optimizer, settings.max_grad_norm)


@torch.no_grad()
def score_passes(
    actor: BartDecoder,
    reference: BartDecoder,
    critic: Critic | None,
    batch: RolloutBatch,
    prompts: Prompts,
    settings: PolicySettings,
    microbatch_size: int,
    keep_ref_hidden: bool = False,
) -> dict[str, Tensor | HiddenStates | None]:
    """Old and reference log-probs of the sampled tokens, exact KL, entropy and values, [B, T] each.

    The tokens are scored as they were drawn, by teacher forcing; nothing is sampled again.

    Args:
        actor: the policy that drew the batch.
        reference: its frozen original.
        critic: None where the advantage needs none.
        batch: the images.
        prompts: their captions.
        settings: of the policy.
        microbatch_size: images a forward pass.
        keep_ref_hidden: also return the reference's states, for an exact KL in the loss.

    Returns:
        The fields of `ScoredBatch` that networks compute.
    """
    columns: dict[str, list[Tensor]] = defaultdict(list)
    ref_hidden: list[HiddenStates] = []
    for rows in torch.arange(len(batch), device=batch.tokens.device).split(microbatch_size):
        tokens, text = batch.tokens[rows], prompts.select(batch.caption_index[rows])
        log_pi = log_pi_of_tokens(actor, tokens, text, settings)
        hidden = hidden_of_tokens(reference, tokens, text, settings)
        ref_log_pi = log_pi_of_hidden(reference, hidden, settings)
        if keep_ref_hidden:
            ref_hidden.append(hidden)
        columns["old_log_probs"].append(gather_log_probs(log_pi, tokens))
        columns["ref_log_probs"].append(gather_log_probs(ref_log_pi, tokens))
        columns["kl"].append(exact_kl(log_pi, ref_log_pi))
        columns["entropy"].append(entropy(log_pi))
        if critic is not None:
            columns["values"].append(critic(tokens, critic.cross_states(text.text), settings.start_token))
    kept = HiddenStates.cat(ref_hidden) if keep_ref_hidden else None
    return {"values": None, "ref_hidden": kept} | {name: torch.cat(parts) for name, parts in columns.items()}


@dataclass(frozen=True)
class PolicyTerms:
    """The actor's loss of some rows and what it is made of, per token [b, T].

    Args:
        loss: to be minimised, with gradient.
        policy: the policy loss alone, before importance weights.
        kl: the KL's part of the loss; None where it is not placed there.
        entropy: the entropy's part; None where its coefficient is 0.
    """

    loss: Tensor
    policy: PolicyLoss
    kl: Tensor | None
    entropy: Tensor | None


def policy_terms(
    log_pi: Tensor,
    ref_log_pi: Tensor | None,
    rows: Tensor,
    batch: RolloutBatch,
    scored: ScoredBatch,
    targets: UpdateTargets,
    config: Config,
    kl_coef: float,
) -> PolicyTerms:
    """The actor's loss of some rows.

    Args:
        log_pi: of the current weights, float32 [b, T, V], with gradient.
        ref_log_pi: of the reference; None unless the KL is exact and in the loss.
        rows: which images, int64 [b].
        batch: the images.
        scored: log-probs, entropy and values of the whole batch.
        targets: advantages of the whole batch.
        config: all settings.
        kl_coef: current weight of the KL.
    """
    log_probs = gather_log_probs(log_pi, batch.tokens[rows])
    old, advantages = scored.old_log_probs[rows], targets.advantages[rows]
    if config.ppo.objective == "score_function":
        policy = score_function_loss(
            log_probs, advantages, old_log_probs=old, max_log_ratio=config.ppo.max_log_ratio
        )
    else:
        policy = ppo_loss(
            log_probs,
            old,
            advantages,
            clip_range=config.ppo.clip_range,
            clip_range_high=config.ppo.clip_range_high,
            dual_clip=config.ppo.dual_clip,
            max_log_ratio=config.ppo.max_log_ratio,
        )
    loss, kl_part, entropy_part = policy.loss, None, None
    if targets.token_weights is not None:
        loss = loss * targets.token_weights[rows]
    if config.kl.placement == "loss":
        if config.kl.estimator == "exact":
            kl_part = kl_coef * exact_kl(log_pi, ref_log_pi)
        else:
            kl_part = kl_coef * kl_k2(log_probs, scored.ref_log_probs[rows])
        loss = loss + kl_part
    if config.ppo.entropy_coef:
        entropy_part = -config.ppo.entropy_coef * entropy(log_pi)
        loss = loss + entropy_part
    return PolicyTerms(loss, policy, kl_part, entropy_part)


def run_update(
    actor: Learner,
    critic: Learner | None,
    reference: BartDecoder,
    batch: RolloutBatch,
    prompts: Prompts,
    scored: ScoredBatch,
    targets: UpdateTargets,
    config: Config,
    kl_coef: float,
    train_actor: bool,
    generator: torch.Generator,
) -> dict[str, float | None]:
    """Epochs of minibatches over one batch; steps the optimisers.

    Args:
        actor: the policy and its optimiser.
        critic: likewise, or None.
        reference: its head serves an exact KL in the loss.
        batch: the images.
        prompts: their captions.
        scored: old log-probs and values.
        targets: advantages and returns.
        config: all settings.
        kl_coef: current weight of the KL.
        train_actor: False while the critic warms up.
        generator: of the order of the images.

    Returns:
        Metrics of the updates, as `runs.metric_table` defines them.
    """
    log = _UpdateLog()
    for _ in range(config.ppo.epochs):
        order = torch.randperm(len(batch), generator=generator).to(batch.tokens.device)
        for minibatch in order.split(config.ppo.minibatch_size):
            num_tokens = len(minibatch) * batch.tokens.shape[1]
            actor_loss, critic_loss = 0.0, 0.0
            for rows in minibatch.split(config.ppo.microbatch_size):
                text = prompts.select(batch.caption_index[rows])
                if train_actor:
                    terms = _actor_backward(
                        actor, reference, rows, batch, text, scored, targets, config, kl_coef, num_tokens
                    )
                    actor_loss += log.add_policy(terms, num_tokens)
                if critic is not None:
                    critic_loss += _critic_backward(
                        critic, rows, batch, text, scored, targets, config, num_tokens
                    )
            log.end_minibatch(train_actor)
            if train_actor and log.actor_minibatches > 1 and past(config.ppo.target_kl, log.last_approx_kl):
                actor.optimizer.zero_grad(set_to_none=True)
                train_actor = False
            if train_actor:
                log.add_step("gradient_norm", actor.step(actor_loss))
            if critic is not None:
                log.sums["value_loss"] += critic_loss
                log.add_step("critic_gradient_norm", critic.step(critic_loss))
            if log.skipped and config.ppo.bad_step == "stop":
                return log.metrics()
            if critic is None and not train_actor:
                return log.metrics()
    return log.metrics()


def past(target_kl: float | None, approx_kl: float) -> bool:
    """Whether the policy may not make another step."""
    return target_kl is not None and approx_kl > target_kl


def _actor_backward(
    actor: Learner,
    reference: BartDecoder,
    rows: Tensor,
    batch: RolloutBatch,
    text: Prompts,
    scored: ScoredBatch,
    targets: UpdateTargets,
    config: Config,
    kl_coef: float,
    num_tokens: int,
) -> PolicyTerms:
    """Adds the gradient of one microbatch to the actor; returns its losses."""
    tokens = batch.tokens[rows]
    log_pi = log_pi_of_tokens(actor.module, tokens, text, config.policy)
    ref_log_pi = None
    if scored.ref_hidden is not None:
        with torch.no_grad():
            ref_log_pi = log_pi_of_hidden(reference, scored.ref_hidden.select(rows), config.policy)
    terms = policy_terms(log_pi, ref_log_pi, rows, batch, scored, targets, config, kl_coef)
    (terms.loss.sum() / num_tokens).backward()
    return terms


def _critic_backward(
    critic: Learner,
    rows: Tensor,
    batch: RolloutBatch,
    text: Prompts,
    scored: ScoredBatch,
    targets: UpdateTargets,
    config: Config,
    num_tokens: int,
) -> float:
    """Adds the gradient of one microbatch to the critic; returns its part of the mean loss."""
    module = critic.module
    values = module(batch.tokens[rows], module.cross_states(text.text), config.policy.start_token)
    old, returns = scored.values[rows], targets.returns[rows]
    loss = value_loss(values, old, returns, value_clip=config.critic.value_clip).sum() / num_tokens
    loss.backward()
    return float(loss.detach())


class _UpdateLog:
    """Collects the numbers of the updates of one iteration."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = defaultdict(float)
        self.steps: dict[str, list[float]] = defaultdict(list)
        self.minibatches = self.actor_minibatches = 0
        self.skipped = 0
        self.ratio_max: float | None = None
        self.first_deviation: float | None = None
        self.last_approx_kl = 0.0
        self._approx_kl = 0.0

    def add_policy(self, terms: PolicyTerms, num_tokens: int) -> float:
        """Adds one microbatch of a minibatch of `num_tokens` tokens; returns its part of the mean loss."""
        policy = terms.policy
        for name, part in (("policy", policy.loss), ("kl", terms.kl), ("entropy", terms.entropy)):
            if part is not None:
                self.sums[f"{name}_loss"] += float(part.detach().sum()) / num_tokens
        self.sums["clip_fraction"] += float(policy.clipped.sum()) / num_tokens
        self._approx_kl += float(policy.approx_kl.sum()) / num_tokens
        self.ratio_max = _larger(self.ratio_max, float(policy.ratio.max()))
        if self.minibatches == 0:
            self.first_deviation = _larger(self.first_deviation, float((policy.ratio - 1).abs().max()))
        return float(terms.loss.detach().sum()) / num_tokens

    def add_step(self, name: str, norm: float | None) -> None:
        if norm is None:
            self.skipped += 1
        else:
            self.steps[name].append(norm)

    def end_minibatch(self, train_actor: bool) -> None:
        self.sums["approx_kl"] += self._approx_kl
        self.last_approx_kl, self._approx_kl = self._approx_kl, 0.0
        self.minibatches += 1
        self.actor_minibatches += train_actor

    def metrics(self) -> dict[str, float | None]:
        names = ("policy_loss", "kl_loss", "entropy_loss", "value_loss", "clip_fraction", "approx_kl")
        means: dict[str, float | None] = dict.fromkeys(names)
        for name in self.sums.keys() & means.keys():
            count = self.minibatches if name == "value_loss" else self.actor_minibatches
            means[name] = self.sums[name] / count if count else None
        norms = {name: sum(norms) / len(norms) for name, norms in self.steps.items()}
        return {
            **means,
            **norms,
            "ratio_max": self.ratio_max,
            "ratio_first_minibatch_max_deviation": self.first_deviation,
            "skipped_updates": self.skipped,
        }


def _larger(a: float | None, b: float) -> float:
    """The larger of two, where None is nothing; NaN if one is: `max` may pass over it."""
    return b if a is None or math.isnan(b) else a if math.isnan(a) else max(a, b)


LearningRate = Callable[[int], float]


def learning_rates(
    peak: float, warmup: int, schedule: str, num_iterations: int, first: int = 0
) -> LearningRate:
    """Learning rate of each iteration.

    Args:
        peak: the largest.
        warmup: iterations of linear warm-up to it.
        schedule: "linear" decays to zero at `num_iterations`, during the warm-up too; "constant" does not.
        num_iterations: of the run.
        first: iteration of the first step, from which the warm-up counts.
    """

    def rate(iteration: int) -> float:
        decayed = 1 - iteration / num_iterations if schedule == "linear" else 1.0
        return peak * min(1.0, max(0, iteration - first + 1) / max(1, warmup)) * decayed

    return rate
