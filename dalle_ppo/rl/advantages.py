"""Turns scores into advantages: rewards, GAE, estimators without a critic, running statistics.

Advantages are constants to the losses, so every function here runs without gradient. The value after the last
token is 0 because the image is finished.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dalle_ppo.rl.shapes import check_same_shape

# The discount. An image has one score, at its end (https://arxiv.org/abs/1909.08593): anything below 1 would
# hide it from the first tokens.
GAMMA = 1.0
MOST_CAPTIONS = 20_000
"""Of web captions hardly one comes back: without a limit, memory and checkpoints would grow with the run."""
# A spread below float32's rounding of the mean counts as none: dividing by it would turn noise into scores.
_FLOAT32_ROUNDING = 2.0**-23


@torch.no_grad()
def token_rewards(scores: Tensor, kl: Tensor, kl_coef: float) -> Tensor:
    """Reward per token: the KL penalty everywhere, the image's score at the last token only.

    Args:
        scores: [B] score of each finished image; any normalisation happens before this call.
        kl: [B, T] k1 estimate of KL(policy, reference) per token, nats.
        kl_coef: weight of the KL, in (normalised) score per nat.

    Returns:
        [B, T] rewards.

    Raises:
        ValueError: the shapes do not match.

    Source: https://arxiv.org/abs/1909.08593 eq. 2 (Ziegler et al.).
    """
    if kl.dim() != 2 or scores.shape != kl.shape[:1]:
        raise ValueError(f"scores must be [B] and kl [B, T], got {list(scores.shape)} and {list(kl.shape)}")
    rewards = -kl_coef * kl
    rewards[:, -1] += scores
    return rewards


@torch.no_grad()
def gae(rewards: Tensor, values: Tensor, gae_lambda: float) -> Tensor:
    """Generalised advantage estimation.

    Args:
        rewards: [B, T] from `token_rewards`.
        values: [B, T] `values[:, t]` has seen the tokens before `t`; after the last token the value is 0.
        gae_lambda: 1 is the Monte-Carlo return minus the value, 0 the one-step TD error, in [0, 1].

    Returns:
        [B, T] advantages. The critic's targets are `advantages + values`, taken before any whitening.

    Raises:
        ValueError: the shapes differ.

    Source: https://arxiv.org/abs/1506.02438 eq. 16 (Schulman et al.), as the backward recurrence, which never
        forms a power of the discount.
    """
    check_same_shape(rewards=rewards, values=values)
    next_values = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    deltas = rewards + GAMMA * next_values - values
    advantages = torch.empty_like(deltas)
    running = torch.zeros_like(deltas[:, 0])
    for t in reversed(range(deltas.shape[1])):
        running = deltas[:, t] + GAMMA * gae_lambda * running
        advantages[:, t] = running
    return advantages


@torch.no_grad()
def whiten(x: Tensor, moments: tuple[float, float] | None = None, eps: float = 1e-8) -> Tensor:
    """Shift and scale to mean 0 and standard deviation 1 over the whole batch, never per sequence.

    Args:
        x: any shape; all images of the update, not a microbatch.
        moments: mean and variance of another batch, by which to shift and scale; None takes those of `x`.
        eps: added to the variance, so that a batch without spread gives zeros.

    Returns:
        Same shape.

    Source: `whiten` in
        https://github.com/openai/lm-human-preferences/blob/master/lm_human_preferences/utils/core.py.
    """
    if moments is not None:
        return (x - moments[0]) * (moments[1] + eps) ** -0.5
    centred = x - x.mean()
    return centred * torch.rsqrt(centred.square().mean() + eps)


def _centred_in_group(scores: Tensor, group_index: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over the group of (own score - member's score), and the [B, B] membership mask.

    Differences are taken first: images with equal scores get exactly 0, and no other group's numbers matter.
    """
    if scores.dim() != 1:
        raise ValueError(f"scores must be [B], got {list(scores.shape)}")
    check_same_shape(scores=scores, group_index=group_index)
    same = group_index[:, None] == group_index[None, :]
    alone = same.sum(1) == 1
    if alone.any():
        raise ValueError(
            f"group {group_index[alone][0].item()} has one image; comparing the images of a caption "
            "needs at least two images per caption"
        )
    differences = scores[:, None] - scores[None, :]
    return differences.masked_fill(~same, 0.0).sum(1), same


@torch.no_grad()
def rloo(scores: Tensor, group_index: Tensor) -> Tensor:
    """REINFORCE leave-one-out: the score minus the mean score of the other images of the same caption.

    Args:
        scores: [B] score of each image, minus the KL penalty if that is in the reward.
        group_index: [B] int64, equal for the images of one caption; any order, any group sizes of at least 2.

    Returns:
        [B] advantages, the same for every token of the image. Unbiased.

    Raises:
        ValueError: the shapes differ or a group has one image.

    Source: https://arxiv.org/abs/2402.14740 (Ahmadian et al.); Kool et al. 2019.
    """
    total, same = _centred_in_group(scores, group_index)
    return total / (same.sum(1) - 1)


@torch.no_grad()
def group_normalised(scores: Tensor, group_index: Tensor, eps: float = 1e-4) -> Tensor:
    """GRPO's advantage: score minus the group's mean, over the group's standard deviation.

    Args:
        scores: [B] score of each image.
        group_index: [B] int64, equal for the images of one caption; group sizes of at least 2.
        eps: added to the standard deviation; a group of equal scores gets 0.

    Returns:
        [B] advantages, the same for every token of the image. Biased: all groups have equal weight however
        much their scores differ, and an image's own score is part of the mean and the deviation.

    Raises:
        ValueError: the shapes differ or a group has one image.

    Source: https://arxiv.org/abs/2402.03300 section 4.1.2 (Shao et al.), with the sample standard deviation
        (n - 1) and eps of `GRPOTrainer` in https://github.com/huggingface/trl.
    """
    total, same = _centred_in_group(scores, group_index)
    count = same.sum(1)
    centred = total / count
    squares = centred.square()[None, :].masked_fill(~same, 0.0).sum(1)
    return centred / ((squares / (count - 1)).sqrt() + eps)


@torch.no_grad()
def group_centred(scores: Tensor, group_index: Tensor) -> Tensor:
    """GRPO's advantage without division by the deviation: score minus the group's mean.

    Args:
        scores: [B] score of each image.
        group_index: [B] int64, equal for the images of one caption; group sizes of at least 2.

    Returns:
        [B] advantages; `rloo`'s times (n - 1) / n, and so unbiased up to that factor.

    Raises:
        ValueError: the shapes differ or a group has one image.

    Source: https://arxiv.org/abs/2503.20783 section 3.2 (Dr. GRPO, Liu et al.).
    """
    total, same = _centred_in_group(scores, group_index)
    return total / same.sum(1)


@torch.no_grad()
def has_spread(scores: Tensor, group_index: Tensor) -> Tensor:
    """Whether an image belongs to a group whose scores are not all equal; bool [B].

    Args:
        scores: [B] score of each image.
        group_index: [B] int64, equal for the images of one caption.

    Source: https://arxiv.org/abs/2503.14476 section 3.2 (DAPO, dynamic sampling).
    """
    check_same_shape(scores=scores, group_index=group_index)
    same = group_index[:, None] == group_index[None, :]
    return (same & (scores[:, None] != scores[None, :])).any(1)


def clip_advantages(x: Tensor, bound: float) -> Tensor:
    """Clamp to [-bound, bound].

    Args:
        x: any shape.
        bound: > 0, in standard deviations when the advantages are whitened.

    Returns:
        Same shape.
    """
    return x.clamp(-bound, bound)


def _finite_list(scores: Tensor) -> list[float]:
    """The scores as Python floats (64 bit); refuses any that would poison running statistics for good."""
    listed = scores.detach().flatten().tolist()
    for value in listed:
        if not math.isfinite(value):
            raise ValueError(f"running statistics: a score is {value}; all must be finite")
    return listed


def _mean_and_var(values: Sequence[float]) -> tuple[float, float]:
    """Mean and population variance in float64."""
    mean = math.fsum(values) / len(values)
    return mean, math.fsum((value - mean) ** 2 for value in values) / len(values)


@torch.no_grad()
def explained_variance(values: Tensor, returns: Tensor) -> float | None:
    """Share of the returns' variance that the critic accounts for.

    Args:
        values: [B, T] predictions made before the update.
        returns: [B, T] targets.

    Returns:
        `1 - var(returns - values) / var(returns)`: 1 is perfect, 0 no better than a constant, below 0 worse;
        None if the returns have no spread beyond rounding.

    Raises:
        ValueError: the shapes differ.

    Source: `explained_variance` in
        https://github.com/openai/baselines/blob/master/baselines/common/math_util.py.
    """
    check_same_shape(values=values, returns=returns)
    values, returns = values.to("cpu", torch.float64), returns.to("cpu", torch.float64)
    spread = returns.var(correction=0).item()
    # Returns are sums over the tokens of an image. Where all scores are equal, float32's rounding leaves a
    # spread, of up to 4.4 units over 1024 tokens.
    largest = max(returns.abs().max().item(), values.abs().max().item())
    if spread <= (8 * _FLOAT32_ROUNDING * largest) ** 2:
        return None
    return 1.0 - (returns - values).var(correction=0).item() / spread


@dataclass(frozen=True)
class RunningMoments:
    """Mean and variance of everything seen so far.

    Saved with `dataclasses.asdict`, loaded with `RunningMoments(**saved)`.

    Args:
        mean: running mean.
        var: running population variance.
        count: numbers seen.

    Source: Chan, Golub & LeVeque 1979, the parallel form of Welford's update.
    """

    mean: float = 0.0
    var: float = 0.0
    count: int = 0

    @property
    def std(self) -> float:
        """What to divide scores by: the standard deviation, or 1 while no spread has been seen."""
        std = math.sqrt(self.var)
        return std if std > _FLOAT32_ROUNDING * abs(self.mean) else 1.0

    def update(self, x: Tensor) -> "RunningMoments":
        """Return the moments with the numbers of `x` added.

        Args:
            x: any shape; an empty one changes nothing.

        Raises:
            ValueError: a number is not finite.
        """
        batch = _finite_list(x)
        if not batch:
            return self
        batch_mean, batch_var = _mean_and_var(batch)
        count = self.count + len(batch)
        delta = batch_mean - self.mean
        between = delta**2 * self.count * len(batch) / count
        return RunningMoments(
            mean=self.mean + delta * len(batch) / count,
            var=(self.var * self.count + batch_var * len(batch) + between) / count,
            count=count,
        )


@dataclass(frozen=True)
class PromptStatistics:
    """The latest scores of each caption, to compare an image with earlier images of the same caption.

    Args:
        buffer_size: scores kept per caption, at least 1.
        min_count: a caption with fewer is compared with the whole batch instead, 1 to `buffer_size`.
        scores: caption id -> its latest scores, oldest first; the caption seen last comes last.

    Differs: of more than `MOST_CAPTIONS` captions, those that were not seen for longest are forgotten.
    Source: https://arxiv.org/abs/2305.13301 appendix (Black et al.); `PerPromptStatTracker` in
        https://github.com/kvablack/ddpo-pytorch.
    """

    buffer_size: int = 32
    min_count: int = 16
    scores: Mapping[Hashable, tuple[float, ...]] = field(default_factory=dict)

    def update(self, scores: Tensor, caption_ids: Sequence[Hashable] | Tensor) -> "PromptStatistics":
        """Return the statistics with a batch added; call it before `advantages`, as DDPO does.

        Args:
            scores: [B] score of each image.
            caption_ids: B ids, one per image; a list of strings or ints, or an int64 tensor.

        Raises:
            ValueError: the lengths differ or a score is not finite.
        """
        merged = dict(self.scores)
        for caption_id, score in _pair(scores, caption_ids):
            # Put at the end, so that the captions that were not seen for longest come first.
            merged[caption_id] = (*merged.pop(caption_id, ()), score)[-self.buffer_size :]
        for caption_id in list(merged)[: max(0, len(merged) - MOST_CAPTIONS)]:
            del merged[caption_id]
        return PromptStatistics(self.buffer_size, self.min_count, merged)

    def advantages(
        self, scores: Tensor, caption_ids: Sequence[Hashable] | Tensor, eps: float = 1e-6
    ) -> Tensor:
        """Normalise each score by its caption's mean and standard deviation.

        A caption with fewer than `min_count` scores uses the mean and deviation of the batch.

        Args:
            scores: [B] score of each image.
            caption_ids: B ids, one per image; a list of strings or ints, or an int64 tensor.
            eps: added to the standard deviation.

        Returns:
            [B] advantages, the same for every token of the image.

        Raises:
            ValueError: the lengths differ or a score is not finite.
        """
        pairs = _pair(scores, caption_ids)
        moments = {None: _mean_and_var([score for _, score in pairs])}
        for caption_id in {caption_id for caption_id, _ in pairs}:
            known = self.scores.get(caption_id, ())
            moments[caption_id] = _mean_and_var(known) if len(known) >= self.min_count else moments[None]
        normalised = []
        for caption_id, score in pairs:
            mean, var = moments[caption_id]
            normalised.append((score - mean) / (math.sqrt(var) + eps))
        return torch.tensor(normalised, dtype=scores.dtype, device=scores.device)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON types; `from_dict` gives back an equal object."""
        return {
            "buffer_size": self.buffer_size,
            "min_count": self.min_count,
            "scores": [[caption_id, list(kept)] for caption_id, kept in self.scores.items()],
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> "PromptStatistics":
        """The inverse of `to_dict`."""
        scores = {caption_id: tuple(kept) for caption_id, kept in saved["scores"]}
        return cls(saved["buffer_size"], saved["min_count"], scores)


def _pair(scores: Tensor, caption_ids: Sequence[Hashable] | Tensor) -> list[tuple[Hashable, float]]:
    if scores.dim() != 1 or len(caption_ids) != scores.shape[0]:
        raise ValueError(f"need one caption id per score, got {len(caption_ids)} for {list(scores.shape)}")
    if isinstance(caption_ids, Tensor):  # tensor elements hash by identity: no two would be the same caption
        caption_ids = caption_ids.tolist()
    return list(zip(caption_ids, _finite_list(scores), strict=True))
