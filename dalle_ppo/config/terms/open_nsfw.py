"""Settings of the reward term `open_nsfw`."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from dalle_ppo.config.term import TermSettings


@dataclass(frozen=True)
class Settings(TermSettings):
    """Minus the NSFW probability, or its logit, by Yahoo's open_nsfw; needs the extra `detectors`."""

    parts: ClassVar = ("open_nsfw_probability",)

    scale: Literal["probability", "logit"] = "probability"
    """What is subtracted: the "probability", in 0..1, or its "logit", which still tells images apart where
    the probability is close to 0 or 1. The part `open_nsfw_probability`, which a gate compares, is the
    probability in both cases."""
