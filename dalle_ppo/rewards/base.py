"""What a reward is: a callable from images and captions to a total and its named parts."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class RewardResult:
    """Scores of B images.

    Args:
        total: float32 [B]; what training maximises.
        parts: named float32 [B] tensors the total is made of, or that explain it. The names
            `nsfw_probability` and `clip_similarity` are read by reports.
        embeddings: L2-normalised, float32 [B, D], of the images, where the reward computed some; an
            evaluation tells diversity by them.
    """

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)
    embeddings: Tensor | None = None


Reward = Callable[[Tensor, list[str]], RewardResult]
"""`(images [B, 3, H, W] float in [0, 1], captions) -> RewardResult`."""


def check_result(result: RewardResult, num_images: int, name: str) -> RewardResult:
    """Refuses a reward that has another shape than one number an image, or is not finite.

    Raises:
        ValueError: naming the reward, what came back and what it must be.
    """
    if not isinstance(result, RewardResult):
        kind = type(result).__name__
        raise ValueError(f"reward {name} returned {kind}; it must return a tensor or a RewardResult")
    for part, values in {"total": result.total, **result.parts}.items():
        if not isinstance(values, Tensor) or values.shape != (num_images,):
            shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(f"reward {name} returned {part} of shape {shape}; it must be ({num_images},)")
        bad = int((~torch.isfinite(values)).sum())
        if bad:
            raise ValueError(f"reward {name} returned {part} with {bad} of {num_images} values not finite")
    return result
