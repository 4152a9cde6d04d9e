"""The two halves of learning from a batch: what every network says of it, and the optimiser steps.

The first half (`score_passes`) runs without gradient over the whole batch; the second (`run_update`) makes
epochs of minibatches of microbatches. Losses are summed over microbatches and divided by the minibatch's
tokens, so the microbatch size changes memory and not the update.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .config import Config
from .models.bart import BartDecoder
from .models.critic import Critic
from .models.policy import PolicySettings
from .optim import make_adamw
from .rl.kl import entropy, exact_kl, kl_k2
from .rl.losses import PolicyLoss, ppo_loss, score_function_loss, value_loss
from .rl.records import HiddenStates, RolloutBatch, ScoredBatch, UpdateTargets
from .sampling import Prompts, gather_log_probs, hidden_of_tokens, log_pi_of_hidden, log_pi_of_tokens


@dataclass(frozen=True)
class Learner:
    """A network and its optimiser; learning rate and gradient clip are its own."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    max_grad_norm: float

    def step(self) -> float | None:
        """Clips, steps and clears the gradient; returns its norm, or None (and no step) if not finite."""
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.max_grad_norm)
        finite = bool(torch.isfinite(norm))
        if finite:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm) if finite else None


def make_learner(module: nn.Module, learning_rate: float, max_grad_norm: float, config: Config) -> Learner:
    """A module with AdamW over its trainable parameters."""
    ppo = config.ppo
    optimizer = make_adamw(module.parameters(), learning_rate, ppo.weight_decay, eps=ppo.adam_eps)
    return Learner(module, optimizer, max_grad_norm)


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


def policy_terms(
    log_pi: Tensor,
    ref_log_pi: Tensor | None,
    rows: Tensor,
    batch: RolloutBatch,
    scored: ScoredBatch,
    targets: UpdateTargets,
    config: Config,
    kl_coef: float,
) -> tuple[Tensor, PolicyLoss]:
    """The actor's loss of some rows, per token [b, T], and what the policy loss logged.

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
        policy = score_function_loss(log_probs, advantages, old_log_probs=old)
    else:
        policy = ppo_loss(
            log_probs,
            old,
            advantages,
            clip_range=config.ppo.clip_range,
            clip_range_high=config.ppo.clip_range_high,
            dual_clip=config.ppo.dual_clip,
        )
    loss = policy.loss
    if targets.token_weights is not None:
        loss = loss * targets.token_weights[rows]
    if config.kl.placement == "loss":
        if config.kl.estimator == "exact":
            penalty = exact_kl(log_pi, ref_log_pi)
        else:
            penalty = kl_k2(log_probs, scored.ref_log_probs[rows])
        loss = loss + kl_coef * penalty
    if config.ppo.entropy_coef:
        loss = loss - config.ppo.entropy_coef * entropy(log_pi)
    return loss, policy


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
        Metrics of the updates, as `metrics.METRICS` defines them.
    """
    log = _UpdateLog()
    for _ in range(config.ppo.epochs):
        order = torch.randperm(len(batch), generator=generator).to(batch.tokens.device)
        for minibatch in order.split(config.ppo.minibatch_size):
            num_tokens = len(minibatch) * batch.tokens.shape[1]
            for rows in minibatch.split(config.ppo.microbatch_size):
                text = prompts.select(batch.caption_index[rows])
                if train_actor:
                    log.add_policy(
                        _actor_backward(
                            actor, reference, rows, batch, text, scored, targets, config, kl_coef, num_tokens
                        ),
                        num_tokens,
                    )
                if critic is not None:
                    loss = _critic_backward(critic, rows, batch, text, scored, targets, config, num_tokens)
                    log.sums["value_loss"] += loss
            if train_actor:
                log.add_step("gradient_norm", actor.step())
            if critic is not None:
                log.add_step("critic_gradient_norm", critic.step())
            log.end_minibatch()
            if config.ppo.target_kl is not None and log.last_approx_kl > config.ppo.target_kl:
                return log.metrics()
    return log.metrics()


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
) -> PolicyLoss:
    """Adds the gradient of one microbatch to the actor."""
    tokens = batch.tokens[rows]
    log_pi = log_pi_of_tokens(actor.module, tokens, text, config.policy)
    ref_log_pi = None
    if scored.ref_hidden is not None:
        with torch.no_grad():
            ref_log_pi = log_pi_of_hidden(reference, scored.ref_hidden.select(rows), config.policy)
    loss, policy = policy_terms(log_pi, ref_log_pi, rows, batch, scored, targets, config, kl_coef)
    (loss.sum() / num_tokens).backward()
    return policy


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
        self.minibatches = 0
        self.skipped = 0
        self.ratio_max: float | None = None
        self.first_deviation: float | None = None
        self.last_approx_kl = 0.0
        self._approx_kl = 0.0

    def add_policy(self, policy: PolicyLoss, num_tokens: int) -> None:
        """Adds one microbatch of a minibatch of `num_tokens` tokens."""
        self.sums["policy_loss"] += float(policy.loss.detach().sum()) / num_tokens
        self.sums["clip_fraction"] += float(policy.clipped.sum()) / num_tokens
        self._approx_kl += float(policy.approx_kl.sum()) / num_tokens
        self.ratio_max = max(self.ratio_max or 0.0, float(policy.ratio.max()))
        if self.minibatches == 0:
            deviation = float((policy.ratio - 1).abs().max())
            self.first_deviation = max(self.first_deviation or 0.0, deviation)

    def add_step(self, name: str, norm: float | None) -> None:
        if norm is None:
            self.skipped += 1
        else:
            self.steps[name].append(norm)

    def end_minibatch(self) -> None:
        self.sums["approx_kl"] += self._approx_kl
        self.last_approx_kl, self._approx_kl = self._approx_kl, 0.0
        self.minibatches += 1

    def metrics(self) -> dict[str, float | None]:
        names = ("policy_loss", "value_loss", "clip_fraction", "approx_kl")
        means = {name: self.sums[name] / self.minibatches if name in self.sums else None for name in names}
        norms = {name: sum(norms) / len(norms) for name, norms in self.steps.items()}
        return {
            **means,
            **norms,
            "ratio_max": self.ratio_max,
            "ratio_first_minibatch_max_deviation": self.first_deviation,
            "skipped_updates": self.skipped,
        }


LearningRate = Callable[[int], float]


def linear_schedule(peak: float, warmup: int, num_iterations: int) -> LearningRate:
    """Linear warm-up over `warmup` iterations, and linear decay to zero at `num_iterations`."""
    return lambda iteration: (
        peak * min(1.0, (iteration + 1) / max(1, warmup)) * (1 - iteration / num_iterations)
    )
