"""Settings of the anchor: images of the reference on which the policy is held to it."""

from dataclasses import dataclass

from dalle_ppo.base.checks import at_least_one, not_empty, not_negative, positive


@dataclass(frozen=True)
class AnchorConfig:
    """Images of the reference on which the policy is held to it."""

    coef: float = 0.0
    """Weight of the KL on the anchor's images, in the units of `kl.kl_coef`; 0 is off. Default 0.0. Use about
    3, and half of the usual kl.kl_coef, when most captions of `captions.shares` are suspicious: the drawn
    images then teach what to avoid, and the anchor holds what must stay. It follows PPO-ptx (arXiv
    2203.02155), with the exact KL in place of the likelihood."""
    num_images: int = 384
    """Images that the reference draws once, before training; they count as drawn images. Default 384, our
    own. Raise it when `anchor_kl` falls while the policy forgets other captions."""
    minibatch_size: int = 24
    """How many of them each optimiser step looks at. Default 24, our own. Raise it when the anchor's gradient
    is noisy."""
    temperature: float = 1.0
    """Temperature of the reference that the policy is held to, relative to `policy.temperature`; below 1 the
    target is sharper than the reference. Default 1.0: the reference as it is. Use 0.7 to 0.9 to keep its
    errors of sampling out as well; pictures then vary less. It does for the anchor what a negative
    `actor.entropy_coef` does for the drawn images."""
    shares: dict[str, float] | None = None
    """Share of each tag among the anchor's captions, as in `captions.shares`; null uses that mix. Give the
    captions here that must not change, such as {UNLIKELY: 1, UNSURE: 0, NSFW: 0}."""

    def __post_init__(self) -> None:
        not_empty(self, "anchor", "shares")
        not_negative(self, "anchor", "coef")
        positive(self, "anchor", "temperature")
        at_least_one(self, "anchor", "num_images", "minibatch_size")
        if self.minibatch_size > self.num_images:
            raise ValueError(
                f"anchor.minibatch_size is {self.minibatch_size}; it must be at most anchor.num_images = "
                f"{self.num_images}"
            )
