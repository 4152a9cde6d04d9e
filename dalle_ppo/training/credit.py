"""Turns scores into what an update learns from: advantages, the critic's returns, importance weights."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from dalle_ppo.config.settings import Config
from dalle_ppo.rl.advantages import (
    PromptStatistics,
    RunningMoments,
    clip_advantages,
    explained_variance,
    gae,
    group_centred,
    group_normalised,
    has_spread,
    rloo,
    token_rewards,
    whiten,
)
from dalle_ppo.rl.kl import kl_k1
from dalle_ppo.rl.losses import truncated_importance_weights
from dalle_ppo.rl.records import Experience


@dataclass(frozen=True)
class CreditState:
    """What credit carries from one iteration to the next; saved with a checkpoint.

    Args:
        score_moments: moments of all raw scores so far; scores are divided by their standard deviation.
        kl_coef: current weight of the KL.
        prompt_statistics: scores of each caption, for the "per_prompt" advantage.
    """

    score_moments: RunningMoments = field(default_factory=RunningMoments)
    kl_coef: float = 0.0
    prompt_statistics: PromptStatistics = field(default_factory=PromptStatistics)


@dataclass(frozen=True)
class Given:
    """What an advantage estimator computes for an iteration.

    Args:
        advantages: [B, T], before whitening.
        returns: the critic's targets, [B, T]; None without a critic.
        statistics: prompt statistics, updated if the estimator keeps them.
    """

    advantages: Tensor
    returns: Tensor | None
    statistics: PromptStatistics


@dataclass(frozen=True)
class Estimator:
    """An advantage estimator.

    Args:
        give: `(rewards [B, T], experience, config, state) -> Given`; the experience has its `reward_scale`.
        needs_critic: whether it reads values.
        images_per_caption: how many it needs at least.
        has_own_units: whether each caption's advantages are in their own units, so that the KL has no price
            in raw scores.
    """

    give: Callable[[Tensor, Experience, Config, CreditState], Given]
    needs_critic: bool = False
    images_per_caption: int = 1
    has_own_units: bool = False


def _with_critic(rewards: Tensor, experience: Experience, config: Config, state: CreditState) -> Given:
    advantages = gae(rewards, experience.values, config.credit.gae_lambda)
    return Given(advantages, advantages + experience.values, state.prompt_statistics)


def _of_whole_images(
    of_images: Callable[[Tensor, Tensor], Tensor], rewards: Tensor, experience: Experience, state: CreditState
) -> Given:
    """Every token gets its image's advantage, which comes from other images of the same caption."""
    advantages = of_images(rewards.sum(dim=1), experience.caption_index)
    return Given(_at_every_token(advantages, rewards), None, state.prompt_statistics)


def _rloo(rewards: Tensor, experience: Experience, config: Config, state: CreditState) -> Given:
    return _of_whole_images(rloo, rewards, experience, state)


def _group(rewards: Tensor, experience: Experience, config: Config, state: CreditState) -> Given:
    return _of_whole_images(group_normalised, rewards, experience, state)


def _group_centred(rewards: Tensor, experience: Experience, config: Config, state: CreditState) -> Given:
    return _of_whole_images(group_centred, rewards, experience, state)


def _per_prompt(rewards: Tensor, experience: Experience, config: Config, state: CreditState) -> Given:
    # Raw scores are kept, because other iterations divide by other scales.
    raw = rewards.sum(dim=1) * experience.reward_scale
    statistics = state.prompt_statistics.update(raw, experience.caption_ids)
    advantages = statistics.advantages(raw, experience.caption_ids)
    return Given(_at_every_token(advantages, rewards), None, statistics)


def _refuse(rewards: Tensor, experience: Experience, config: Config, state: CreditState) -> Given:
    raise ValueError("credit.advantage none is for objectives that bring their own credit")


def _at_every_token(advantages: Tensor, rewards: Tensor) -> Tensor:
    return advantages[:, None].expand_as(rewards).contiguous()


ESTIMATORS = {
    "gae": Estimator(_with_critic, needs_critic=True),
    "rloo": Estimator(_rloo, images_per_caption=2),
    "group": Estimator(_group, images_per_caption=2, has_own_units=True),
    "per_prompt": Estimator(_per_prompt, has_own_units=True),
    "none": Estimator(_refuse),
}
"""The values of `credit.advantage`."""

GROUP_CENTRED = Estimator(_group_centred, images_per_caption=2)
""""group" without division by the deviation; objective grpo can ask for it."""


def credit(
    experience: Experience,
    config: Config,
    state: CreditState,
    estimator: Estimator | None = None,
) -> tuple[Experience, CreditState]:
    """Turns scores into advantages and returns.

    The score is divided by its running standard deviation; its mean is left to the baseline.

    Args:
        experience: with scores, log-probs and, for "gae", values.
        config: only `credit`, `kl` and `update.importance_cap` are used.
        state: state after the previous iterations; its `kl_coef` is the KL's current weight.
        estimator: computes the advantages; None is that of `credit.advantage`.

    Returns:
        The experience with advantages, returns and token weights; the state for the next iteration.
    """
    settings = config.credit
    moments = state.score_moments.update(experience.scores)
    experience = replace(experience, reward_scale=moments.std if settings.normalise_scores else 1.0)
    in_reward = state.kl_coef if config.kl.placement == "reward" else 0.0
    k1 = kl_k1(experience.old_log_probs, experience.ref_log_probs)
    rewards = token_rewards(experience.scores / experience.reward_scale, k1, in_reward)
    estimator = estimator or ESTIMATORS[settings.advantage]
    given = estimator.give(rewards, experience, config, state)
    advantages = given.advantages
    if settings.whiten_advantages:
        advantages = whiten(advantages)
    if settings.advantage_clip is not None:
        advantages = clip_advantages(advantages, settings.advantage_clip)
    weights, cap = None, config.update.importance_cap
    if cap is not None:
        weights = truncated_importance_weights(experience.old_log_probs, experience.sampler_log_probs, cap)
    filled = replace(
        experience,
        advantages=advantages,
        returns=given.returns,
        token_weights=weights,
        has_one_unit=not estimator.has_own_units,
        advantage_std=given.advantages.std().item(),
        advantage_moments=(given.advantages.mean().item(), given.advantages.var(correction=0).item()),
    )
    return filled, replace(state, score_moments=moments, prompt_statistics=given.statistics)


def kl_coef_raw(experience: Experience, config: Config, kl_coef: float) -> float | None:
    """The KL's weight in raw reward units; None if each caption has its own units, or none has advantages.

    Whitening divides the advantages but not a KL that is placed in the loss; a KL in the reward is divided
    with them.
    """
    if config.kl.placement == "reward":
        return kl_coef * experience.reward_scale
    if not experience.has_one_unit:
        return None
    whitened = experience.advantage_std if config.credit.whiten_advantages else 1.0
    return kl_coef * experience.reward_scale * whitened


def credit_metrics(experience: Experience, config: Config, kl_coef: float) -> dict[str, Any]:
    """The numbers that describe the credit given."""
    metrics = {
        "reward_scale": experience.reward_scale,
        "kl_coef": kl_coef,
        "kl_coef_raw": kl_coef_raw(experience, config, kl_coef),
        "advantage_std": experience.advantage_std,
        "explained_variance": None,
        "captions_without_spread": None,
        "effective_images": None,
        **experience.credit_numbers,
    }
    if config.rollout.samples_per_caption > 1:
        equal = ~has_spread(experience.scores, experience.caption_index)
        metrics["captions_without_spread"] = int(equal.sum()) // config.rollout.samples_per_caption
    if experience.returns is not None:
        values, returns = experience.values, experience.returns
        metrics["explained_variance"] = explained_variance(values, returns)
        metrics |= {"value_mean": values.mean().item(), "return_mean": returns.mean().item()}
    return metrics
