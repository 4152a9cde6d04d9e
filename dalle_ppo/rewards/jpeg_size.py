"""How large an image is as a JPEG file; its settings are in `config/terms/jpeg_size.py`."""

from io import BytesIO

import torch
from torch import Tensor

from dalle_ppo.rewards.base import Reward, RewardResult
from dalle_ppo.rewards.pixels import as_pictures
from dalle_ppo.rewards.shared import Shared

KB = 1000  # bytes
SIGNS = {"incompressible": 1.0, "compressible": -1.0}


def load(options, shared: Shared) -> Reward:
    """Loads nothing.

    Args:
        options: the term's settings.
        shared: not needed.
    """

    def reward(images: Tensor, captions: list[str]) -> RewardResult:
        size = torch.tensor(jpeg_kb(images, options.quality), device=images.device)
        return RewardResult(SIGNS[options.task] * size, {"jpeg_kb": size})

    return reward


def jpeg_kb(images: Tensor, quality: int) -> list[float]:
    """Sizes of images as Pillow writes them, in kB of 1 000 bytes.

    Source: `jpeg_incompressibility` in kvablack/ddpo-pytorch, ddpo_pytorch/rewards.py.

    Args:
        images: float in 0..1, [B, 3, H, W].
        quality: of JPEG; all else is Pillow's default, so colours are halved in both directions.

    Returns:
        B numbers.
    """

    def size(picture) -> float:
        buffer = BytesIO()
        picture.save(buffer, format="JPEG", quality=quality)
        return buffer.tell() / KB

    # One after the other: Pillow 13 holds Python's lock while it encodes, so threads were no faster.
    return [size(picture) for picture in as_pictures(images)]
