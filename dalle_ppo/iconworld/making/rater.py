"""Trains the eyes of the simulated rater, on scenes as drawn and as decoded by the VQGAN, and on junk."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dalle_ppo.iconworld.making.training import image_tensor, train_loop
from dalle_ppo.iconworld.making.vqgan import sample_scenes
from dalle_ppo.iconworld.rater import Eyes
from dalle_ppo.iconworld.scenes import ICON_COLORS, KINDS, Scene, draw_batch, junk_image

JUNK_SHARE = 0.2
BRIGHTNESS = 0.05
"""The eyes learn to overlook shifts of brightness up to this; the judge learns to overlook noise instead."""


def targets(scenes: list[Scene | None]) -> Tensor:
    """float32 [N, K, C]: 1 where a scene shows the kind in the colour; None is junk, which shows nothing."""
    wanted = torch.zeros(len(scenes), len(KINDS), len(ICON_COLORS))
    for row, scene in enumerate(scenes):
        for icon in scene.icons if scene is not None else ():
            wanted[row, KINDS.index(icon.kind), ICON_COLORS.index(icon.color)] = 1.0
    return wanted


def sample_pictures(rng: np.random.Generator, num: int) -> tuple[list[Scene | None], np.ndarray]:
    """Scenes, None for junk, and their images, uint8 [num, 64, 64, 3]."""
    scenes: list[Scene | None] = list(sample_scenes(rng, num))
    images = draw_batch(scenes)
    for i in np.flatnonzero(rng.random(num) < JUNK_SHARE):
        scenes[i], images[i] = None, junk_image(rng)
    return scenes, images


def train_eyes(
    seed: int, num_steps: int, decode: Callable[[list, np.ndarray], np.ndarray], pool_size: int
) -> Eyes:
    """Trains the eyes.

    Args:
        seed: of weights and data; must differ from that of every other part, the judge's included.
        num_steps: optimiser steps, of 64 images each, half of them decoded.
        decode: maps scenes (None for junk) and their images to VQGAN reconstructions.
        pool_size: number of reconstructions to prepare.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 9])
    pool_scenes, pool_images = sample_pictures(rng, pool_size)
    pool_images, pool_targets = decode(pool_scenes, pool_images), targets(pool_scenes)
    eyes = Eyes()

    def loss_of_step(step: int) -> tuple[Tensor, dict[str, float]]:
        scenes, images = sample_pictures(rng, 32)
        picks = rng.integers(pool_size, size=32)
        batch = image_tensor(np.concatenate([images, pool_images[picks]]))
        batch = (batch + BRIGHTNESS * (2 * torch.rand(len(batch), 1, 1, 1) - 1)).clamp(0, 1)
        wanted = torch.cat([targets(scenes), pool_targets[picks]])
        logits = eyes(batch)
        # Most kinds are absent from most images: the mean over all of them would be learned last.
        loss = F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum") / len(batch)
        exact = ((logits > 0) == (wanted > 0.5)).flatten(1).all(dim=1).float().mean()
        return loss, {"loss": float(loss.detach()), "exact": float(exact)}

    for _ in train_loop("rater's eyes", [eyes], num_steps, 2e-3, loss_of_step, weight_decay=0.01):
        pass
    return eyes.eval()
