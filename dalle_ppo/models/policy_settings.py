"""What belongs to a policy besides its weights."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class PolicySettings:
    """What belongs to a policy besides its weights; saved with it."""

    guidance: float = 1.5
    """Guidance s in `l_u + s (l_c - l_u)`, the "supercondition factor" (arXiv 2203.13131); 1 skips the
    unconditional branch. Default 1.5, our own, for the built-in world; 10 to 16 is usual for DALL·E mini and
    Mega. Raise it where pictures ignore their captions, lower it where they are all alike."""
    temperature: float = 1.0
    """Divides the guided logits; above 0. Default 1.0, our own choice: the models were trained at it. Lower
    it for fewer mistakes and less variety."""
    top_k: int | None = None
    """Draw from the k most likely codes only, in training, evaluation and generation; training needs at least
    2. Null draws from all. Default null; 256 in https://github.com/kuprel/min-dalle. Set it to what people
    will draw with, or where stray unlikely codes spoil pictures. Training stores the k codes of every token,
    and on a GPU it then draws without the fast sampler."""
    start_token: int | None = None
    """The token before the first image token; null uses the model's own. Default null; 16383 in
    https://github.com/kuprel/min-dalle. Set it to draw that package's pictures."""
    detach_unconditional: bool = False
    """Stop the gradient through the unconditional branch. Default false, our own: it gives the policy's exact
    gradient. Use true where the unconditional branch must not drift."""

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"policy.temperature is {self.temperature}; it must be above 0, and finite")
        if not math.isfinite(self.guidance):
            raise ValueError(f"policy.guidance is {self.guidance}; it must be a finite number")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"policy.top_k is {self.top_k}; it must be at least 1, or null for all codes")

    def check_start_token(self, last: int) -> None:
        """Rejects a start token that a model with embeddings 0 to `last` does not have.

        Raises:
            ValueError: the token is out of range; names the range.
        """
        if self.start_token is not None and not 0 <= self.start_token <= last:
            raise ValueError(f"policy.start_token is {self.start_token}; the model has tokens 0 to {last}")

    @property
    def guided(self) -> bool:
        return self.guidance != 1.0
