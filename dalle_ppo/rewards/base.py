"""What a reward is: a callable from images, captions and metadata to a total and its named parts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dalle_ppo.rewards.gates import Gate


class RewardFailure(ValueError):
    """A reward could not be computed, for a reason that its one-line message explains in full."""


@dataclass(frozen=True)
class RewardResult:
    """Scores of B images.

    Args:
        total: float32 [B]; what training maximises.
        parts: named float32 [B] tensors that the total is made of, or that explain it.
        embeddings: L2-normalised image embeddings, float32 [B, D], if the reward computed them; an
            evaluation measures diversity with them.
        values: of a sum of terms, each term's value by its label, float32 [B], without its weight; NaN where
            its gate is closed.
    """

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)
    embeddings: Tensor | None = None
    values: dict[str, Tensor] = field(default_factory=dict)


Metadata = list[dict[str, Any]]
"""What is known about each image's caption: `tag` and `id`."""

Reward = Callable[..., RewardResult]
"""`(images [B, 3, H, W] float in [0, 1], captions, metadata) -> RewardResult`; a term may do without
metadata."""


@dataclass(frozen=True)
class Term:
    """One term of a reward, loaded.

    Args:
        label: what metrics, gates and errors call it.
        function: takes `(images, captions)` or `(images, captions, metadata)`; `calling.read_result` says
            what it may return.
        parts: the names it reports its numbers under; empty reports its value under its label.
        weight: factor of its value in the total.
        gate: where it counts; None counts everywhere.
        images_per_caption: how many images of each caption it needs.
    """

    label: str
    function: Callable
    parts: tuple[str, ...] = ()
    weight: float = 1.0
    gate: Gate | None = None
    images_per_caption: int = 1


def metadata_of(tags: Sequence[str], ids: Sequence[str]) -> Metadata:
    """The metadata of images whose captions have these tags and ids."""
    return [{"tag": tag, "id": caption_id} for tag, caption_id in zip(tags, ids, strict=True)]


def check_result(result: RewardResult, num_images: int, name: str) -> RewardResult:
    """Rejects a reward that is not one finite number per image.

    Raises:
        ValueError: it is not; names the reward, what it returned and what it must return.
    """
    if not isinstance(result, RewardResult):
        raise ValueError(f"reward {name} returned {type(result).__name__}; it must return a RewardResult")
    for part, values in (("total", result.total), *result.parts.items()):  # a part may be called total
        if not isinstance(values, Tensor) or values.shape != (num_images,):
            shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(f"reward {name} returned {part} of shape {shape}; it must be ({num_images},)")
        bad = int((~torch.isfinite(values)).sum())
        if bad:
            raise ValueError(f"reward {name} returned {part} with {bad} of {num_images} values not finite")
    return result
