"""Eight drawings whose embeddings tell one CLIP from another."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

PROBES = "dalle_ppo.probes.v1"  # the name of these drawings; changed ones need a new name
NUM_PROBES = 8
SIZE = 224
# Lies between the cosine of half precision and that of the wrong activation; docs/detectors.md has the
# measured numbers.
MIN_COSINE = 0.99995


def probe_images() -> Tensor:
    """The drawings, float32 [8, 3, 224, 224] in 0..1.

    They are made from integers alone, so they are the same everywhere, with every version of any library.
    """
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.int64)
    radius = (x - 112) ** 2 + (y - 112) ** 2
    house = (abs(x - 112) < y - 30) & (y < 110) | (abs(x - 112) < 55) & (y >= 110) & (y < 195)
    noise = ((x // 14 * 73 + y // 14 * 151 + 40) ** 2 * 2654435761 >> 7) % 251
    drawings = [
        _paint(x // 28 % 2 == y // 28 % 2, (230, 60, 40), (250, 240, 210)),
        _paint((x + y) // 16 % 2 == 0, (30, 80, 200), (240, 200, 60)),
        _paint(radius < 20**2, (0, 0, 0), (255, 255, 255)),
        _paint(radius // 1200 % 2 == 0, (20, 120, 70), (245, 245, 245)),
        _paint(house, (150, 90, 40), (110, 170, 250)),
        _paint((x % 40 - 20) ** 2 + (y % 40 - 20) ** 2 < 10**2, (0, 0, 0), (255, 255, 255)),
        np.stack([x, y, 223 - x]),
        np.stack([noise, noise * 7 % 251, noise * 31 % 251]),
    ]
    return torch.from_numpy(np.stack(drawings).astype(np.float32) / 255)


def _paint(inside: np.ndarray, colour: tuple[int, int, int], ground: tuple[int, int, int]) -> np.ndarray:
    """An image [3, H, W] in 0..255: one colour where `inside` [H, W] is true, another elsewhere."""
    return np.where(inside, np.array(colour)[:, None, None], np.array(ground)[:, None, None])


def least_cosine(kept: Tensor, found: Tensor) -> float:
    """The smallest cosine between two embeddings of the same drawing, both [8, D]."""
    kept, found = kept.double().cpu(), found.double().cpu()
    return torch.nn.functional.cosine_similarity(kept, found, dim=1).min().item()
