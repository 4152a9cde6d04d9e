"""What settings of one section demand of another's."""

from typing import TYPE_CHECKING

from dalle_ppo.rl.adaptive_kl import ERROR_CLIP

if TYPE_CHECKING:
    from dalle_ppo.config.settings import Config


def check_sections(config: "Config") -> None:
    """Refuses sections that do not go together.

    Raises:
        ValueError: naming both settings and the way out.
    """
    for check in (
        _check_policy,
        _check_images_per_caption,
        _check_minibatches,
        _check_entropy,
        _check_horizon,
    ):
        check(config)


def _check_policy(config: "Config") -> None:
    if config.policy.top_k is not None:
        raise ValueError(
            f"policy.top_k is {config.policy.top_k}; training needs null: a sampled token could leave the "
            "support and its log-prob become -inf. generate takes --top_k"
        )


def _check_images_per_caption(config: "Config") -> None:
    if config.credit.advantage in ("rloo", "group") and config.rollout.samples_per_caption < 2:
        raise ValueError(
            f"credit.advantage {config.credit.advantage} compares the images of one caption; "
            "set rollout.samples_per_caption to at least 2"
        )


def _check_minibatches(config: "Config") -> None:
    batch, minibatch = config.rollout.rollout_batch_size, config.update.minibatch_size
    if minibatch is not None and batch % minibatch:
        raise ValueError(
            f"update.minibatch_size is {minibatch}; it must divide rollout.rollout_batch_size = {batch}, "
            "or be null"
        )


def _check_entropy(config: "Config") -> None:
    """What holds a policy against an entropy penalty is the KL: without enough of it, every token becomes
    certain whatever the reward."""
    entropy_coef, kl = config.actor.entropy_coef, config.kl
    if entropy_coef >= 0:
        return
    if kl.placement == "reward":
        raise ValueError(
            f"actor.entropy_coef is {entropy_coef:g} and kl.placement reward; advantages are whitened after "
            "the KL is taken off, so it may not hold an entropy penalty: set actor.entropy_coef to 0"
        )
    if kl.kl_coef + entropy_coef <= 0:
        raise ValueError(
            f"kl.kl_coef is {kl.kl_coef:g} and actor.entropy_coef {entropy_coef:g}; their sum must be above "
            "0, or nothing holds the policy's entropy: set actor.entropy_coef to 0"
        )
    if kl.target is not None:
        raise ValueError(
            f"kl.target is {kl.target:g}: it moves kl.kl_coef, which an actor.entropy_coef below 0 "
            f"({entropy_coef:g}) needs to stay above it; set actor.entropy_coef to 0"
        )


def _check_horizon(config: "Config") -> None:
    largest_step = ERROR_CLIP * config.rollout.rollout_batch_size
    if config.kl.target is not None and largest_step >= config.kl.horizon:
        raise ValueError(
            f"kl.horizon is {config.kl.horizon} images; with kl.target it must exceed {ERROR_CLIP} * "
            f"rollout.rollout_batch_size = {largest_step:g}, or one batch could turn kl_coef negative"
        )
