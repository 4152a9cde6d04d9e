"""Scenes as VQGAN codes: encoded as a whole image, or composed from the codes of their icons."""

from collections.abc import Sequence

import numpy as np
import torch

from dalle_ppo.iconworld.making.training import image_tensor
from dalle_ppo.iconworld.scenes import IMAGE_SIZE, PATCH, PlacedIcon, Scene, draw_batch
from dalle_ppo.models.dalle.vqgan import VqganDecoder, VqganEncoder, encode_images

SINGLE_SIZE = 40
CENTRE, PAIR_HOME = (12, 12), (2, 18)  # (x, y) at which an icon of each size is encoded


@torch.no_grad()
def image_tokens(
    encoder: VqganEncoder, decoder: VqganDecoder, images: np.ndarray, microbatch_size: int = 64
) -> torch.Tensor:
    """Codes of images: uint8 [N, H, W, 3] to int64 [N, T] on the CPU."""
    device = decoder.embedding.weight.device
    parts = [
        encode_images(encoder, decoder, image_tensor(images[i : i + microbatch_size]).to(device)).cpu()
        for i in range(0, len(images), microbatch_size)
    ]
    return torch.cat(parts)


class SceneTokens:
    """Composes the tokens of scenes from the tokens of their icons.

    An encoder's codes depend on the whole image: the same boat gets different codes next to another icon,
    and a model that must guess such differences draws blobs. So each icon is encoded once per background, on
    its own, and a scene is its background's codes with its icons' codes on top. That works because icons are
    aligned with the grid of tokens.
    """

    def __init__(self, encoder: VqganEncoder, decoder: VqganDecoder):
        self.encoder, self.decoder = encoder, decoder
        self._sheets: dict[tuple, torch.Tensor] = {}

    def __call__(self, scenes: Sequence[Scene]) -> torch.Tensor:
        """Codes, int64 [N, T], of scenes."""
        return torch.stack([self._compose(scene) for scene in scenes])

    def draw(self, scenes: Sequence[Scene]) -> np.ndarray:
        """What the VQGAN draws from those codes, uint8 [N, 64, 64, 3]."""
        return decode_tokens(self.decoder, self(scenes))

    def _compose(self, scene: Scene) -> torch.Tensor:
        grid = self._sheet((), scene.background).clone()
        for icon in scene.icons:
            # The sprite's margin reaches the next multiple of the patch on every side.
            top, left = icon.y // PATCH, icon.x // PATCH
            side = -(-(icon.y % PATCH + icon.size) // PATCH)
            home = CENTRE if icon.size == SINGLE_SIZE else PAIR_HOME
            sheet = self._sheet(((icon.kind, icon.color, *home, icon.size),), scene.background)
            row, column = home[1] // PATCH, home[0] // PATCH
            grid[top : top + side, left : left + side] = sheet[row : row + side, column : column + side]
        return grid.flatten()

    def _sheet(self, icons: tuple, background: str) -> torch.Tensor:
        key = (icons, background)
        if key not in self._sheets:
            scene = Scene(tuple(PlacedIcon(*icon) for icon in icons), background)
            side = IMAGE_SIZE // PATCH
            self._sheets[key] = image_tokens(self.encoder, self.decoder, draw_batch([scene])).view(side, side)
        return self._sheets[key]


def decode_tokens(decoder: VqganDecoder, tokens: torch.Tensor) -> np.ndarray:
    """Codes [N, T] to images, uint8 [N, 64, 64, 3]."""
    return decoder.decode_uint8(tokens).permute(0, 2, 3, 1).numpy()
