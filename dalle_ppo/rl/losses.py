"""Policy and value losses, one number per token.

Nothing here is reduced: the caller divides the sum by the number of tokens in the whole minibatch, so that
any microbatch size gives the same update. Every image has exactly T tokens, so there is no mask.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dalle_ppo.rl.shapes import check_same_shape

# Log-ratios are clamped to plus or minus this, so that exp() stays finite; there is no gradient beyond it
# (as in https://github.com/volcengine/verl).
MAX_LOG_RATIO = 20.0


@dataclass(frozen=True)
class PolicyLoss:
    """A policy loss per token, with numbers worth logging. Only `loss` carries a gradient.

    Args:
        loss: [B, T] to be minimised.
        ratio: [B, T] pi / pi_old of the sampled codes; 1 on the first minibatch of an iteration.
        clipped: [B, T] bool, tokens whose gradient a clip has switched off; its mean is the clip fraction.
        approx_kl: [B, T] nats, k3 estimate of KL(pi_old, pi).
    """

    loss: Tensor
    ratio: Tensor
    clipped: Tensor
    approx_kl: Tensor


def _log_ratio(log_probs: Tensor, old_log_probs: Tensor) -> Tensor:
    return (log_probs - old_log_probs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def _approx_kl(log_ratio: Tensor) -> Tensor:
    return log_ratio.expm1() - log_ratio


def ppo_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    *,
    clip_range: float,
    clip_range_high: float | None = None,
    dual_clip: float | None = None,
    of_images: bool = False,
) -> PolicyLoss:
    """PPO's clipped surrogate, negated, per token.

    Args:
        log_probs: [B, T] log pi of the sampled codes under the current weights, with gradient.
        old_log_probs: [B, T] the same under the weights that the batch was scored with.
        advantages: [B, T], constant: no gradient flows into them.
        clip_range: ratios below 1 - clip_range (or above 1 + clip_range) earn nothing more.
        clip_range_high: upper clip range if it differs; a larger one lets unlikely codes grow faster.
        dual_clip: for negative advantages, the loss stops growing at this ratio. None is off; 3 is usual.
        of_images: take the ratio of whole images, the geometric mean over their tokens, at every token.

    Returns:
        PolicyLoss; `approx_kl` is always that of the tokens.

    Raises:
        ValueError: the shapes differ.

    Source: https://arxiv.org/abs/1707.06347 eq. 7 (PPO); https://arxiv.org/abs/1912.09729 eq. 5 (dual clip);
        https://arxiv.org/abs/2503.14476 section 3.1 (upper clip 0.28); https://arxiv.org/abs/2507.18071 eq. 7
        (GSPO, the ratio of whole sequences).
    """
    check_same_shape(log_probs=log_probs, old_log_probs=old_log_probs, advantages=advantages)
    clip_range_high = clip_range if clip_range_high is None else clip_range_high
    advantages = advantages.detach()
    log_ratio = _log_ratio(log_probs, old_log_probs.detach())
    compared = log_ratio.mean(dim=1, keepdim=True).expand_as(log_ratio) if of_images else log_ratio
    ratio = compared.exp()
    free = -advantages * ratio
    bounded = -advantages * ratio.clamp(1 - clip_range, 1 + clip_range_high)
    loss = torch.maximum(free, bounded)
    clipped = bounded > free
    if dual_clip is not None:
        ceiling = -advantages * dual_clip
        dual_clipped = (advantages < 0) & (loss > ceiling)
        loss = torch.where(dual_clipped, ceiling, loss)
        clipped = clipped | dual_clipped
    return PolicyLoss(
        loss=loss,
        ratio=ratio.detach(),
        clipped=clipped,
        approx_kl=_approx_kl(log_ratio.detach()),
    )


def score_function_loss(log_probs: Tensor, advantages: Tensor, *, old_log_probs: Tensor) -> PolicyLoss:
    """REINFORCE: `-advantage * log pi` per token, without ratio or clip.

    Its gradient is the policy gradient only while the weights are those that drew the batch: one epoch, one
    update.

    Args:
        log_probs: [B, T] log pi of the sampled codes under the current weights, with gradient.
        advantages: [B, T], constant: no gradient flows into them.
        old_log_probs: [B, T] as in `ppo_loss`; used only for the ratio and KL that are logged.

    Returns:
        PolicyLoss with nothing clipped. The value of the loss means nothing; only its gradient does.

    Raises:
        ValueError: the shapes differ.

    Source: Williams 1992; DDPO_SF in https://arxiv.org/abs/2305.13301 section 4.2.
    """
    check_same_shape(log_probs=log_probs, old_log_probs=old_log_probs, advantages=advantages)
    log_ratio = _log_ratio(log_probs, old_log_probs).detach()
    return PolicyLoss(
        loss=-advantages.detach() * log_probs,
        ratio=log_ratio.exp(),
        clipped=torch.zeros_like(log_ratio, dtype=torch.bool),
        approx_kl=_approx_kl(log_ratio),
    )


def truncated_loss(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, *, max_ratio: float
) -> PolicyLoss:
    """The policy gradient of images from an older policy: `-min(ratio, max_ratio) * advantage * log pi`.

    No gradient flows through the ratio, so a truncated token keeps a gradient.

    Args:
        log_probs: [B, T] log pi of the sampled codes under the current weights, with gradient.
        old_log_probs: [B, T] the same under the weights that drew them.
        advantages: [B, T], constant: no gradient flows into them.
        max_ratio: the largest weight of a token, > 0.

    Returns:
        PolicyLoss; `clipped` marks truncated weights. The value of the loss means nothing; only its gradient
        does. It is biased unless both policies are the same, as each token is corrected by itself alone.

    Raises:
        ValueError: the shapes differ.

    Source: truncated importance weights as in https://fengyao.notion.site/off-policy-rl; the ratio in
        https://arxiv.org/abs/2305.16381 section 4.2.
    """
    check_same_shape(log_probs=log_probs, old_log_probs=old_log_probs, advantages=advantages)
    log_ratio = _log_ratio(log_probs, old_log_probs).detach()
    ratio = log_ratio.exp()
    return PolicyLoss(
        loss=-advantages.detach() * ratio.clamp(max=max_ratio) * log_probs,
        ratio=ratio,
        clipped=ratio > max_ratio,
        approx_kl=_approx_kl(log_ratio),
    )


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, *, value_clip: float | None = None
) -> Tensor:
    """Half the squared error of the critic per token, optionally with a bound on how far values may move.

    Args:
        values: [B, T] from the critic, with gradient.
        old_values: [B, T] the critic's values when the batch was collected.
        returns: [B, T] targets, in the units of the values.
        value_clip: largest useful move from `old_values`, in the units of the returns (absolute, not
            relative). Only sensible when scores are divided by their standard deviation: next to a return of
            30, 0.2 is nothing.

    Returns:
        [B, T] loss with gradient; none flows into `old_values` or `returns`.

    Raises:
        ValueError: the shapes differ.

    Source: `value_loss` in https://github.com/openai/baselines/blob/master/baselines/ppo2/model.py.
    """
    check_same_shape(values=values, old_values=old_values, returns=returns)
    old_values, returns = old_values.detach(), returns.detach()
    loss = 0.5 * (values - returns).square()
    if value_clip is None:
        return loss
    near = old_values + (values - old_values).clamp(-value_clip, value_clip)
    return torch.maximum(loss, 0.5 * (near - returns).square())


@torch.no_grad()
def truncated_importance_weights(
    old_log_probs: Tensor, sampler_log_probs: Tensor, cap: float = 2.0
) -> Tensor:
    """Per-token weights that correct for the sampler rounding differently from the training forward pass.

    Args:
        old_log_probs: [B, T] from the training forward pass.
        sampler_log_probs: [B, T] of the same codes, as the sampler drew them.
        cap: largest weight, > 0; it bounds the variance at the price of a small bias.

    Returns:
        [B, T] weights in [0, cap] to multiply the policy loss by; no gradient.

    Raises:
        ValueError: the shapes differ.

    Source: https://fengyao.notion.site/off-policy-rl (Yao et al. 2025, truncated importance sampling).
    """
    check_same_shape(old_log_probs=old_log_probs, sampler_log_probs=sampler_log_probs)
    return (old_log_probs - sampler_log_probs).exp().clamp(max=cap)
