"""When training has gone wrong: a policy that has collapsed, updates that are not finite."""

import math

from dalle_ppo.config.settings import Config


def check_collapse(described: dict, config: Config, iteration: int) -> None:
    """Refuses a policy that has collapsed: to learn from it, or to call it a good checkpoint.

    Args:
        described: of `policy_metrics`.
        config: bounds in `actor.min_entropy` and `kl.max_kl`.
        iteration: how many the policy has behind it.

    Raises:
        ValueError: KL or entropy is no number or past its bound.
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
            f"iteration {iteration}: the policy has collapsed: its KL from the reference is {kl:.1f} nats an "
            f"image, above kl.max_kl = {max_kl:g}; {advice}, or raise the bound"
        )
    if min_entropy is not None and entropy < min_entropy:
        raise ValueError(
            f"iteration {iteration}: the policy has collapsed: its entropy is {entropy:.3g} nats an image, "
            f"below actor.min_entropy = {min_entropy:g}; {advice}, or lower the bound"
        )


def broken_updates(metrics: dict, config: Config) -> str | None:
    """Why the run must stop after an iteration, or None.

    Steps that were left out stop it where `update.bad_step` says so, and in any case where no step of a
    network was good.

    Args:
        metrics: of the iteration, as `update.run_update` makes them.
        config: all settings.
    """
    if not metrics.get("skipped_updates"):
        return None
    iteration, advice = metrics["iteration"], "lower the learning rate and go on with --resume"
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
            return f"iteration {iteration}: not one loss and gradient of the {name} was finite; {advice}"
    return None
