"""Settings of the critic."""

from dataclasses import dataclass

from dalle_ppo.base.checks import not_negative, positive


@dataclass(frozen=True)
class CriticConfig:
    """A network of its own with an optimiser of its own, for `credit.advantage` gae.

    Its body starts as a copy of the policy's, its head at zero.
    """

    learning_rate: float = 1e-3
    """The critic's peak learning rate; it warms up and decays as the actor's does. Default 1e-3, our own, for
    the built-in world. Raise it when `explained_variance` stays low."""
    max_grad_norm: float = 1.0
    """The critic's gradient is scaled down to this norm, apart from the actor's. Default 1.0 (arXiv
    2006.05990): under a joint clip the critic starves the actor. Raise it when the norm is always above
    it."""
    warmup_iterations: int = 0
    """Iterations at the start that train the critic alone. Default 0; 5 to 20 are usual where a critic must
    be good from the start (arXiv 2503.01491). Set it with `credit.gae_lambda` below 1."""
    value_clip: float | None = None
    """Bound on how far a value moves in one iteration, in units of normalised returns; null is none. Default
    null: it does not help (arXiv 2006.05990); PPO's own code has 0.2 to 0.5. Set it to compare with that."""
    weight_decay: float = 0.0
    """Weight decay of the critic's AdamW (arXiv 1711.05101). Default 0.0. Set it when the critic learns its
    batches by heart: `explained_variance` falls and so does `value_loss`."""
    adam_eps: float = 1e-5
    """Epsilon of the critic's AdamW. Default 1e-5, as for the actor
    (https://iclr-blog-track.github.io/2022/03/25/ppo-implementation-details/, detail 3). Raise it when
    weights with hardly any gradient move too much."""

    def __post_init__(self) -> None:
        not_negative(self, "critic", "learning_rate", "warmup_iterations", "weight_decay")
        positive(self, "critic", "max_grad_norm", "value_clip", "adam_eps")
