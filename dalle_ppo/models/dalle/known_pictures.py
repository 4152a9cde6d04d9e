"""Pictures whose tokens are drawn again are not decoded again."""

from collections.abc import Callable

import torch
from torch import Tensor

KEPT_BYTES = 2**28
"""Pixels that are kept: 20 000 pictures of 64 x 64 pixels, 1 300 of 256 x 256."""


class KnownPictures:
    """Decodes each picture once, however often it is drawn.

    All sides of an evaluation draw from the same noise, so where the policy has not moved it draws the
    reference's picture, and samples of a caption may be alike. What comes first is kept, as later sides meet
    it in that order.

    Args:
        kept_bytes: no more is kept once this much is.
    """

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self.free = kept_bytes
        self.known: dict[bytes, Tensor] = {}

    def decode(self, tokens: Tensor, decode: Callable[[Tensor], Tensor]) -> Tensor:
        """The pixels of tokens.

        Args:
            tokens: int64 [N, T].
            decode: decodes those that are new, [M, T].

        Returns:
            uint8 [N, 3, H, W], on the device that `decode` uses.
        """
        keys = [row.tobytes() for row in tokens.cpu().numpy()]
        new = list(dict.fromkeys(key for key in keys if key not in self.known))
        if not new:
            return torch.stack([self.known[key] for key in keys]).to(tokens.device)
        rows = [keys.index(key) for key in new]
        # The products of a single image add in another order, and may round otherwise.
        images = decode(tokens[rows * 2 if len(rows) == 1 else rows])[: len(rows)]
        drawn = dict(zip(new, images, strict=True))
        found = [drawn[key] if key in drawn else self.known[key].to(images.device) for key in keys]
        for key, pixels in drawn.items():
            if self.free >= pixels.nbytes:
                self.free -= pixels.nbytes
                self.known[key] = pixels.cpu().clone()  # a view would keep the whole batch
        return torch.stack(found)
