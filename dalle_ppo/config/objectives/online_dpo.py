"""Settings of online DPO (arXiv 2305.18290, arXiv 2402.04792)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dalle_ppo.base.checks import positive
from dalle_ppo.config.own_weights import OWN_WEIGHTS, check_images_per_caption, check_own_weights

if TYPE_CHECKING:
    from dalle_ppo.config.settings import Config


@dataclass(frozen=True)
class Settings:
    """Online DPO: each caption's best image against its worst."""

    beta: float = 0.1
    """How strongly the reference holds the policy: an image's log-ratio to the reference, times this, is its
    implied reward. Default 0.1, as in https://huggingface.co/docs/trl/online_dpo_trainer. Raise it when `kl`
    grows too fast."""

    def __post_init__(self) -> None:
        positive(self, "online_dpo", "beta")


# Half of the images are in pairs; two passes make as many steps as PPO takes.
DEFAULTS: dict[str, object] = OWN_WEIGHTS | {"rollout.samples_per_caption": 4, "update.epochs": 2}


def check(config: "Config") -> None:
    """Refuses settings that it does not read, captions with one image, and batches that split a pair."""
    check_own_weights(config)
    check_images_per_caption(config, "objective online_dpo")
    for name in ("minibatch_size", "microbatch_size"):
        size = getattr(config.update, name)
        if size is not None and size % 2:
            raise ValueError(
                f"update.{name} is {size}; objective online_dpo needs an even number, so that "
                " the two images of a pair stay together"
            )
