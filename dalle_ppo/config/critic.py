"""Settings of the critic."""

from dataclasses import dataclass
from typing import Literal

from dalle_ppo.base.checks import at_least_one, not_negative, positive


@dataclass(frozen=True)
class CriticConfig:
    """A separate network with its own optimiser, for `credit.advantage` gae.

    Its body starts as the policy's, and its head starts at zero.
    """

    learning_rate: float = 1e-3
    """The critic's peak learning rate; it warms up and decays like the actor's. Default 1e-3, our own, for
    the built-in world. Raise it when `explained_variance` stays low."""
    adapter: Literal["none", "lora"] = "none"
    """How the critic's body is trained. "none" trains a copy of the policy's body. "lora" trains small
    matrices beside those of the reference's own, frozen body, which needs no copy; the value head is trained
    whole. It needs the extra lora. Default none, our own. Use lora when memory is short."""
    lora_rank: int = 8
    """Columns of each of LoRA's small matrices in the critic. Default 8, our own, as for the actor. Raise it
    when `explained_variance` stays low."""
    lora_alpha: float = 16.0
    """LoRA's change of a weight of the critic is scaled by `lora_alpha` / `lora_rank`. Default 16.0, our own,
    twice the rank. Change it together with the rank."""
    max_grad_norm: float = 1.0
    """The critic's gradient is scaled down to this norm, separately from the actor's. Default 1.0 (arXiv
    2006.05990): with one norm for both, the critic starves the actor. Raise it when the critic's gradient is
    always larger."""
    warmup_iterations: int = 0
    """Iterations at the start that train only the critic. Default 0; 5 to 20 are usual where a critic must
    be good from the start (arXiv 2503.01491). Set it with `credit.gae_lambda` below 1."""
    value_clip: float | None = None
    """Limit on how far a value moves in one iteration, in units of normalised returns; null is no limit.
    Default null: a limit does not help (arXiv 2006.05990); PPO's own code uses 0.2 to 0.5. Set it to compare
    with that code."""
    weight_decay: float = 0.0
    """Weight decay of the critic's AdamW (arXiv 1711.05101). Default 0.0. Set it when the critic memorises
    its batches: `explained_variance` falls and so does `value_loss`."""
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """The critic's optimiser. "adamw" keeps 8 bytes per trained weight (arXiv 1711.05101). "adamw_8bit" keeps
    2, in blocks of 256 numbers (arXiv 2110.02861); it needs the package bitsandbytes and a GPU. Default
    adamw: it is exact. Use adamw_8bit where the critic does not fit
    otherwise."""
    adam_eps: float = 1e-5
    """Epsilon of the critic's AdamW. Default 1e-5, as for the actor
    (https://iclr-blog-track.github.io/2022/03/25/ppo-implementation-details/, detail 3). Raise it when
    weights with hardly any gradient move too much."""

    def __post_init__(self) -> None:
        not_negative(self, "critic", "learning_rate", "warmup_iterations", "weight_decay")
        positive(self, "critic", "max_grad_norm", "value_clip", "adam_eps", "lora_alpha")
        at_least_one(self, "critic", "lora_rank")
