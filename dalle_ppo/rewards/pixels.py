"""Images as a person would save them, for terms that read pixels rather than embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image


def as_uint8(images: Tensor) -> np.ndarray:
    """Images as bytes: exactly those that a run's pictures hold, for the trainer's images come from bytes.

    Args:
        images: float in 0..1, [B, 3, H, W], on any device; what lies outside is cut off.

    Returns:
        uint8 [B, H, W, 3], contiguous.
    """
    pixels = (images.detach().float() * 255).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def as_pictures(images: Tensor) -> list[Image]:
    """The same as Pillow's images, RGB, B of them."""
    from PIL import Image

    return [Image.fromarray(pixels) for pixels in as_uint8(images)]
