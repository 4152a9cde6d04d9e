"""Grids of images for people to look at, with unsafe ones blurred."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageFilter

if TYPE_CHECKING:
    from torch import Tensor


def to_numpy(images: "Tensor") -> np.ndarray:
    """uint8 [N, 3, H, W] on any device to uint8 [N, H, W, 3]."""
    return images.permute(0, 2, 3, 1).cpu().numpy()


def blur_unsafe(images: np.ndarray, unsafe: np.ndarray) -> np.ndarray:
    """Blurs flagged images beyond recognition.

    Args:
        images: uint8 [N, H, W, 3].
        unsafe: bool [N].

    Returns:
        uint8 of the same shape; the other images are unchanged.
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


def image_grid(
    images: Sequence[np.ndarray] | np.ndarray, columns: int | None = None, gap: int = 2
) -> np.ndarray:
    """Images, uint8 [N, H, W, 3], on a white grid, row by row: uint8 [height, width, 3]."""
    images = np.asarray(images)
    count, height, width, _ = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    grid = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 255, dtype=np.uint8)
    for n, image in enumerate(images):
        top, left = gap + n // columns * (height + gap), gap + n % columns * (width + gap)
        grid[top : top + height, left : left + width] = image
    return grid
