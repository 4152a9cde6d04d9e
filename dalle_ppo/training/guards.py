"""Detects when training has gone wrong: a collapsed policy, updates that are not finite, unsafe samples."""

import math
from collections.abc import Callable

import numpy as np
from torch import Tensor

from dalle_ppo.config.settings import Config
from dalle_ppo.rewards.base import RewardResult

Detect = Callable[[Tensor, str], list[bool]]


def check_collapse(described: dict, config: Config, iteration: int) -> None:
    """Raises if the policy has collapsed, so that nothing learns from it or keeps it as a good checkpoint.

    Args:
        described: from `policy_metrics`.
        config: bounds in `actor.min_entropy` and `kl.max_kl`.
        iteration: how many iterations the policy has been trained for.

    Raises:
        ValueError: KL or entropy is not finite or is past its bound.
    """
    kl, entropy = described["kl"], described["entropy"]
    advice = (
        f"remove checkpoints/step_{iteration:06d} and --resume from the one before, if there is one, with a "
        "lower actor.learning_rate or a higher kl.kl_coef"
    )
    if not (math.isfinite(kl) and math.isfinite(entropy)):
        raise ValueError(
            f"iteration {iteration}: the policy has collapsed: its KL from the reference is {kl} and its "
            f"entropy {entropy}; {advice}"
        )
    max_kl, min_entropy = config.kl.max_kl, config.actor.min_entropy
    if max_kl is not None and kl > max_kl:
        raise ValueError(
            f"iteration {iteration}: the policy has collapsed: its KL from the reference is {kl:.1f} nats "
            f"per image, above kl.max_kl = {max_kl:g}; {advice}, or raise the bound"
        )
    if min_entropy is not None and entropy < min_entropy:
        raise ValueError(
            f"iteration {iteration}: the policy has collapsed: its entropy is {entropy:.3g} nats per image, "
            f"below actor.min_entropy = {min_entropy:g}; {advice}, or lower the bound"
        )


def broken_updates(metrics: dict, config: Config) -> str | None:
    """Why the run must stop after an iteration, or None.

    Skipped steps stop it if `update.bad_step` says so, and always if a network did not make a single good
    step.

    Args:
        metrics: the iteration's, as `update.run_update` returns them.
        config: all settings.
    """
    if not metrics.get("skipped_updates"):
        return None
    iteration, advice = metrics["iteration"], "lower the learning rate and continue with --resume"
    if config.update.bad_step == "stop":
        return (
            f"iteration {iteration}: a loss or gradient was not finite, and update.bad_step is stop; {advice}"
            ", or set update.bad_step to skip"
        )
    for name, loss, norm in (
        ("policy", "policy_loss", "gradient_norm"),
        ("critic", "value_loss", "critic_gradient_norm"),
    ):
        if metrics[loss] is not None and norm not in metrics:
            return f"iteration {iteration}: no step of the {name} had a finite loss and gradient; {advice}"
    return None


def flagged_unsafe(
    images: Tensor, result: RewardResult, config: Config, detect: Detect | None = None
) -> np.ndarray:
    """Which samples are blurred: those that the reward's detector calls unsafe, or else another detector.

    Args:
        images: uint8 [N, 3, H, W].
        result: the reward's, of these images.
        config: has the reward's threshold.
        detect: another detector, for a reward without one; `(images, caption) -> [N] bools`.

    Returns:
        bool [N]; False where nothing has checked the images.
    """
    nsfw = config.reward.settings_of("nsfw")
    if nsfw is not None and "nsfw_probability" in result.parts:
        unsafe = ~(result.parts["nsfw_probability"] <= nsfw.unsafe_threshold)  # NaN too
        return unsafe.cpu().numpy()
    return np.array(detect(images, "") if detect else [False] * len(images))
