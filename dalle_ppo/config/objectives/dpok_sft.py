"""Settings of KL-regularised supervised fine-tuning, the baseline of DPOK (arXiv 2305.16381)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dalle_ppo.base.checks import not_negative
from dalle_ppo.config.own_weights import OWN_WEIGHTS, check_own_weights

if TYPE_CHECKING:
    from dalle_ppo.config.settings import Config


@dataclass(frozen=True)
class Settings:
    """The likelihood of images weighted by their scores, held near the reference."""

    form: Literal["data", "output"] = "output"
    """How the reference holds the policy. "output" adds gamma times the exact KL of each token's distribution
    from the reference's; "data" adds gamma to the weight of every image, which raises the likelihood of what
    the reference draws. Default output, our own (arXiv 2305.16381 analyses both). Use data to follow
    the reference's images rather than its distributions."""
    gamma: float = 0.26
    """Weight of the regularisation, relative to weights that are normalised scores, counted from the round's
    lowest. Default 0.26, our own, as `kl.kl_coef` for PPO. Raise it when pictures lose what the
    reference got right."""
    images_from: Literal["reference", "policy"] = "reference"
    """Who draws the images. Default reference (arXiv 2305.16381): supervised fine-tuning learns from images
    of the original model only, so `reward_mean` and the other numbers of the images stay where they are; look
    at the samples and the evaluation. Use policy to draw from what was learned so far, as the other
    objectives do."""

    def __post_init__(self) -> None:
        not_negative(self, "dpok_sft", "gamma")


DEFAULTS: dict[str, object] = OWN_WEIGHTS


def check(config: "Config") -> None:
    """Refuses settings that it does not read."""
    check_own_weights(config)
    own = config.objective_settings
    if config.kl.kl_coef != 0:
        raise ValueError(
            f"kl.kl_coef is {config.kl.kl_coef}; the KL of objective dpok_sft has the weight dpok_sft.gamma: "
            "set that, and leave kl.kl_coef out or set it to 0"
        )
    if own.form == "output" and config.kl.estimator != "exact":
        raise ValueError(
            f"kl.estimator is {config.kl.estimator}; dpok_sft.form output needs exact: leave it out"
        )
    if own.images_from == "reference" and not config.update.recompute_log_probs:
        raise ValueError(
            "update.recompute_log_probs is false; with dpok_sft.images_from reference it must be true, "
            "because the sampler's log-probs are those of the reference"
        )
