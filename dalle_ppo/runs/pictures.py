"""Grids of images for people to look at, with unsafe ones blurred."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from dalle_ppo.base.atomic import atomic_write

if TYPE_CHECKING:
    from torch import Tensor

GAP, LABEL_HEIGHT = 8, 28
"""Pixels between two pictures in a row, and above each of them for its label."""


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
    atomic_write(path, grid.save)


def save_first_and_newest(folder: Path, iteration: int) -> None:
    """Writes `first_and_newest.png`: the grid of step 0 on the left, that of a later iteration on the right.

    Both are read from their files, in which flagged images are blurred. A first one that is missing or
    damaged is left out.

    Args:
        folder: the run's samples.
        iteration: of the newest grid.
    """
    with Image.open(folder / f"step_{iteration:06d}.png") as newest:
        grids = {f"iteration {iteration}": newest.convert("RGB")}
    try:
        with Image.open(folder / "step_000000.png") as first:
            grids = {"before": first.convert("RGB")} | grids
    except OSError:
        pass
    atomic_write(folder / "first_and_newest.png", side_by_side(grids).save)


def side_by_side(pictures: Mapping[str, Image.Image]) -> Image.Image:
    """Pictures in a row, with a thin gap between them, each below its label."""
    width = sum(picture.width + GAP for picture in pictures.values()) - GAP
    height = LABEL_HEIGHT + max(picture.height for picture in pictures.values())
    row, left = Image.new("RGB", (width, height), "white"), 0
    for label, picture in pictures.items():
        # Written small and enlarged: the default font has one size in every version of Pillow.
        words = Image.new("RGB", (picture.width // 2, LABEL_HEIGHT // 2), "white")
        ImageDraw.Draw(words).text((2, 0), label, fill="black")
        row.paste(words.resize((2 * words.width, LABEL_HEIGHT), Image.Resampling.LANCZOS), (left, 0))
        row.paste(picture, (left, LABEL_HEIGHT))
        left += picture.width + GAP
    return row


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
