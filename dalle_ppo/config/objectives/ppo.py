"""Settings of PPO's clipped objective (arXiv 1707.06347)."""

from dataclasses import dataclass

from dalle_ppo.base.checks import positive


@dataclass(frozen=True)
class Settings:
    """PPO: how far one iteration may change the probability of a code."""

    clip_range: float = 0.2
    """PPO's epsilon: a token's probability ratio is clipped to between 1 - this and 1 + this, or 1 +
    `clip_range_high` if that is set; a code earns nothing beyond that. Default 0.2 (arXiv 1707.06347). Lower
    it when `approx_kl` jumps."""
    clip_range_high: float | None = None
    """The same for increases; null uses `clip_range`. Default null; 0.28 (arXiv 2503.14476) lets unlikely
    codes grow. Set it when entropy falls too fast."""
    dual_clip: float | None = 3.0
    """Limit on the loss where the advantage is negative, as a multiple of the advantage; null is no limit.
    Default 3.0 (arXiv 1912.09729). Use null for PPO as published."""

    def __post_init__(self) -> None:
        positive(self, "ppo", "clip_range_high")
        if not 0 < self.clip_range < 1:
            raise ValueError(f"ppo.clip_range is {self.clip_range}; it must lie between 0 and 1")
        upper = self.clip_range if self.clip_range_high is None else self.clip_range_high
        if self.dual_clip is not None and self.dual_clip <= 1 + upper:
            raise ValueError(
                f"ppo.dual_clip is {self.dual_clip}; it must exceed 1 + the upper clip range = {1 + upper}, "
                "or be null"
            )


DEFAULTS: dict[str, object] = {}
