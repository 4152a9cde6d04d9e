"""Settings of DPOK (arXiv 2305.16381): policy gradient, exact KL and a value function, with replay."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dalle_ppo.base.checks import not_negative, positive
from dalle_ppo.config.objective_checks import needs_advantage

if TYPE_CHECKING:
    from dalle_ppo.config.settings import Config


@dataclass(frozen=True)
class Settings:
    """DPOK: the policy gradient on new and replayed images, with the exact KL and a value function."""

    max_ratio: float = 2.0
    """The largest weight of a token: its probability now over that when it was drawn. Default 2.0, as in
    https://fengyao.notion.site/off-policy-rl. The weight corrects for the token itself, not for the tokens
    before and after it, so replayed images have a biased gradient; the correct weight, the product over all
    tokens, explodes. Lower it when `replay_kl` is large."""
    buffer_images: int = 384
    """How many of the latest images are kept to be replayed. Default 384, our own: four iterations. Lower it
    when the policy changes fast: the bias grows with the age of an image."""
    replay_images: int = 48
    """Images that each iteration learns from again, beside the new ones. Default 48, our own: half as many as
    are drawn. Raise it when images or rewards are costly. 0 is off; the gradient of the first step is then
    unbiased."""

    def __post_init__(self) -> None:
        positive(self, "dpok", "max_ratio")
        not_negative(self, "dpok", "buffer_images", "replay_images")
        if self.replay_images > self.buffer_images:
            raise ValueError(
                f"dpok.replay_images is {self.replay_images}; it must be at most dpok.buffer_images = "
                f"{self.buffer_images}"
            )


DEFAULTS: dict[str, object] = {"credit.advantage": "gae", "kl.estimator": "exact", "kl.placement": "loss"}


def check(config: "Config") -> None:
    """Refuses what replayed images do not allow."""
    needs_advantage(config, "gae", "it has a value function")
    kl = config.kl
    if (kl.estimator, kl.placement) != ("exact", "loss"):
        raise ValueError(
            f"kl.estimator is {kl.estimator} and kl.placement {kl.placement}; objective dpok needs exact and "
            "loss: an estimate from the drawn tokens is biased where images are replayed"
        )
    if config.reward.normalise is not None and config.objective_settings.replay_images:
        raise ValueError(
            f"reward.normalise is {config.reward.normalise}; it must be null while dpok.replay_images is "
            "above 0: an image's score would be in other units each time that it is replayed"
        )
    if config.update.target_kl is not None and config.objective_settings.replay_images:
        raise ValueError(
            f"update.target_kl is {config.update.target_kl}; it must be null while dpok.replay_images is "
            "above 0: even before the first step, the policy differs from the one that drew a replayed image"
        )
