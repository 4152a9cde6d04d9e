"""Where the sampler keeps the keys and values of the tokens a decoder layer has seen, written in place."""

import torch
from torch import Tensor

from dalle_ppo.models.dalle.presets import BartConfig


class GrowingCache:
    """Buffers that grow by an eighth of the sequence at a time.

    A CPU reads the start of a long buffer at half the speed of a short one. For values in float32,
    tokens are adjacent in memory, not the numbers of one token: the product that reads them then takes half
    the time, while in bfloat16 it would take four times as long.

    Args:
        num_images: N, rows of the buffers.
        config: sizes.
        like: a tensor with the buffers' dtype and device.
    """

    def __init__(self, num_images: int, config: BartConfig, like: Tensor):
        self.num_tokens = config.num_image_tokens
        self.growth = -(-self.num_tokens // 8)
        self.values_layout = (0, 1, 3, 2) if like.dtype == torch.float32 else (0, 1, 2, 3)
        shape = num_images, config.num_heads, 0, config.width // config.num_heads
        self.keys, self.values = like.new_empty(shape), like.new_empty(shape)

    def write(self, keys: Tensor, values: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Adds one token's keys and values [N, H, 1, D / H]; returns those of all tokens up to it."""
        here = int(position)
        if here == self.keys.shape[2]:
            self.keys = self._grown(self.keys, (0, 1, 2, 3))
            self.values = self._grown(self.values, self.values_layout)
        self.keys[:, :, here : here + 1] = keys
        self.values[:, :, here : here + 1] = values
        return self.keys[:, :, : here + 1], self.values[:, :, : here + 1]

    def _grown(self, buffer: Tensor, layout: tuple[int, ...]) -> Tensor:
        num_images, num_heads, length, width = buffer.shape
        shape = num_images, num_heads, min(length + self.growth, self.num_tokens), width
        longer = torch.empty_permuted(shape, layout, dtype=buffer.dtype, device=buffer.device)
        longer[:, :, :length] = buffer
        return longer
