"""Pixels of tokens that several sides of an evaluation drew alike are decoded once."""

from collections.abc import Callable

import torch
from torch import Tensor

KEPT_BYTES = 2**28
"""Pixels that are kept: 20 000 pictures of 64 x 64 pixels, 1 300 of 256 x 256."""


class Decoded:
    """Decodes each picture once, however often it is drawn.

    All sides draw from the same noise, so where the policy has not moved it draws the reference's picture,
    and samples of a caption may be alike. What comes first is kept, as later sides meet it in that order.

    Args:
        decode: tokens int64 [N, T] to pixels uint8 [N, 3, H, W].
        kept_bytes: no more is kept once this much is.
    """

    def __init__(self, decode: Callable[[Tensor], Tensor], kept_bytes: int = KEPT_BYTES) -> None:
        self.decode = decode
        self.free = kept_bytes
        self.known: dict[bytes, Tensor] = {}

    def __call__(self, tokens: Tensor) -> Tensor:
        """The pixels of tokens, int64 [N, T]: uint8 [N, 3, H, W], on the device that `decode` uses."""
        keys = [row.tobytes() for row in tokens.cpu().numpy()]
        first = {key: row for row, key in reversed(list(enumerate(keys))) if key not in self.known}
        if not first:
            return torch.stack([self.known[key] for key in keys]).to(tokens.device)
        rows = sorted(first.values())
        drawn = self.decode(tokens[rows])
        own = {keys[row]: pixels for row, pixels in zip(rows, drawn, strict=True)}
        images = torch.stack([own[key] if key in own else self.known[key].to(drawn.device) for key in keys])
        for key, pixels in own.items():
            if self.free >= pixels.nbytes:
                self.free -= pixels.nbytes
                self.known[key] = pixels.cpu().clone()  # a view would keep the whole batch
        return images
