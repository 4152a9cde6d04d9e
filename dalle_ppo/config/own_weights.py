"""What suits objectives that weigh whole images by their scores themselves, without advantages."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dalle_ppo.config.settings import Config

OWN_WEIGHTS: dict[str, object] = {
    "credit.advantage": "none",
    "credit.whiten_advantages": False,
    "credit.advantage_clip": None,
    "kl.kl_coef": 0.0,
    "actor.entropy_coef": 0.0,
}
"""Defaults of these objectives. As published, they have neither the KL nor the entropy of this project."""

_UNREAD = {
    "credit.whiten_advantages": False,
    "credit.advantage_clip": None,
    "update.importance_cap": None,
    "kl.placement": "loss",
}


def check_own_weights(config: "Config") -> None:
    """Refuses settings that such an objective would not read.

    Raises:
        ValueError: one of them is set.
    """
    if config.credit.advantage != "none":
        raise ValueError(
            f"credit.advantage is {config.credit.advantage}; objective {config.objective} weighs images by "
            "their scores and has no advantages: leave it out, or set it to none"
        )
    for name, value in _UNREAD.items():
        section, _, leaf = name.partition(".")
        if (given := getattr(getattr(config, section), leaf)) != value:
            needed = {None: "null", False: "false"}.get(value, value)
            raise ValueError(
                f"{name} is {given}; objective {config.objective} weighs images by their scores and does not "
                f"read it: leave it out, or set it to {needed}"
            )


def check_images_per_caption(config: "Config", what: str) -> None:
    """Refuses one image per caption where `what` compares several.

    Raises:
        ValueError: there is one.
    """
    if config.rollout.samples_per_caption < 2:
        raise ValueError(
            f"{what} compares the images of one caption, but rollout.samples_per_caption is "
            f"{config.rollout.samples_per_caption}; set it to at least 2, such as 4"
        )
