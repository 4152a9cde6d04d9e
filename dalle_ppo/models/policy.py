"""What belongs to a policy besides its weights."""

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
        if not self.temperature > 0:
            raise ValueError(f"policy.temperature is {self.temperature}; it must be above 0")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"policy.top_k is {self.top_k}; it must be at least 1, or null for all codes")

    @property
    def guided(self) -> bool:
        return self.guidance != 1.0
