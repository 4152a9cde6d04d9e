"""Grids of images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dalle_ppo.runs.pictures import blur_unsafe, image_grid, save_first_and_newest, save_grid

NOISE = np.random.default_rng(0)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def samples_of(folder: Path, step: int, columns: int = 3) -> np.ndarray:
    """Writes a grid of noise as a run does, the second image flagged; returns the images before blurring."""
    images = NOISE.integers(0, 256, (6, 24, 24, 3), dtype=np.uint8)
    blurred = blur_unsafe(images, np.arange(6) == 1)
    save_grid(folder / f"step_{step:06d}.png", blurred, columns, enlarge=2)
    return images


def test_image_grid_places_pictures_row_by_row():
    images = np.stack([np.full((4, 6, 3), n, dtype=np.uint8) for n in range(5)])
    grid = image_grid(images, columns=3, gap=1)
    assert grid.shape == (2 * 5 + 1, 3 * 7 + 1, 3)
    assert (grid[1:5, 8:14] == 1).all() and (grid[6:10, 1:7] == 3).all()
    assert (grid[6:10, 15:] == 255).all() and (grid[0] == 255).all()


@pytest.mark.parametrize("columns", [3, 2], ids=["as wide and high", "of another shape"])
def test_first_and_newest_are_the_two_grids_side_by_side(columns, tmp_path):
    samples_of(tmp_path, 0)
    samples_of(tmp_path, 20, columns)
    save_first_and_newest(tmp_path, 20)
    both, first, newest = (
        pixels(tmp_path / f"{name}.png") for name in ("first_and_newest", "step_000000", "step_000020")
    )
    top, gap = len(both) - max(len(first), len(newest)), both.shape[1] - first.shape[1] - newest.shape[1]
    assert (both[top:][: len(first), : first.shape[1]] == first).all()
    assert (both[top:][: len(newest), -newest.shape[1] :] == newest).all()
    assert 0 < gap < 20 and (both[:, first.shape[1] :][:, :gap] == 255).all()
    assert (both[:top, : first.shape[1]] < 128).any() and (both[:top, -newest.shape[1] :] < 128).any()
    assert not list(tmp_path.glob(".*")), "nothing temporary is left"


def test_flagged_images_stay_blurred(tmp_path):
    """Noise is the hardest to blur: nothing of its contrast may be left."""
    for step in (0, 20):
        samples_of(tmp_path, step)
    save_first_and_newest(tmp_path, 20)
    both, grid = pixels(tmp_path / "first_and_newest.png"), pixels(tmp_path / "step_000000.png")
    top, right = len(both) - len(grid), both.shape[1] - grid.shape[1]
    for left in (0, right):
        unflagged, flagged = (both[top + 8 :, left + at + 8 :][:36, :36] for at in (0, 52))
        assert unflagged.std() > 40 and flagged.std() < 15


@pytest.mark.parametrize("damaged", [False, True])
def test_without_the_first_grid_the_newest_stands_alone(damaged, tmp_path):
    samples_of(tmp_path, 20)
    if damaged:
        (tmp_path / "step_000000.png").write_bytes(b"no picture")
    save_first_and_newest(tmp_path, 20)
    both, newest = pixels(tmp_path / "first_and_newest.png"), pixels(tmp_path / "step_000020.png")
    assert both.shape[1] == newest.shape[1] and (both[-len(newest) :] == newest).all()
