"""Grids of images for people to open; unsafe ones are blurred."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from torch import Tensor

from dalle_ppo.runs.metrics import image_grid


def to_numpy(images: Tensor) -> np.ndarray:
    """uint8 [N, 3, H, W] on any device to uint8 [N, H, W, 3]."""
    return images.permute(0, 2, 3, 1).cpu().numpy()


def blur_unsafe(images: np.ndarray, unsafe: np.ndarray) -> np.ndarray:
    """Blurs flagged images beyond recognition.

    Args:
        images: uint8 [N, H, W, 3].
        unsafe: bool [N].

    Returns:
        uint8, the same shape; the others as they were.
    """
    blurred = images.copy()
    radius = images.shape[1] / 8
    for i in np.flatnonzero(unsafe):
        blurred[i] = np.asarray(Image.fromarray(images[i]).filter(ImageFilter.GaussianBlur(radius)))
    return blurred


def save_grid(path: Path, images: np.ndarray, columns: int | None = None, enlarge: int = 1) -> None:
    """Writes images, uint8 [N, H, W, 3], as one picture; `enlarge` is a whole factor."""
    grid = Image.fromarray(image_grid(images, columns))
    if enlarge > 1:
        grid = grid.resize((grid.width * enlarge, grid.height * enlarge), Image.Resampling.LANCZOS)
    path.parent.mkdir(parents=True, exist_ok=True)
    grid.save(path)
