"""What belongs to a policy besides its weights."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class PolicySettings:
    """What belongs to a policy besides its weights; saved with it.

    Args:
        guidance: s in `l_u + s (l_c - l_u)`, the "supercondition factor"; 1 skips the second branch.
        temperature: divides the guided logits; above 0.
        top_k: generation may keep only the k most likely codes; training refuses it.
        start_token: what stands before the first image token; None is the model's own.
        detach_unconditional: let no gradient flow through the unconditional branch.
    """

    guidance: float = 1.5
    temperature: float = 1.0
    top_k: int | None = None
    start_token: int | None = None
    detach_unconditional: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"policy.temperature is {self.temperature}; it must be above 0, and finite")
        if not math.isfinite(self.guidance):
            raise ValueError(f"policy.guidance is {self.guidance}; it must be a finite number")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"policy.top_k is {self.top_k}; it must be at least 1, or null for all codes")

    def check_start_token(self, last: int) -> None:
        """Refuses a start token that a model with embeddings 0 to `last` does not have.

        Raises:
            ValueError: naming the range.
        """
        if self.start_token is not None and not 0 <= self.start_token <= last:
            raise ValueError(f"policy.start_token is {self.start_token}; the model knows 0 to {last}")

    @property
    def guided(self) -> bool:
        return self.guidance != 1.0
