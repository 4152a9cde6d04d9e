"""Grids of images."""

import numpy as np

from dalle_ppo.runs.pictures import image_grid


def test_image_grid_places_pictures_row_by_row():
    images = np.stack([np.full((4, 6, 3), n, dtype=np.uint8) for n in range(5)])
    grid = image_grid(images, columns=3, gap=1)
    assert grid.shape == (2 * 5 + 1, 3 * 7 + 1, 3)
    assert (grid[1:5, 8:14] == 1).all() and (grid[6:10, 1:7] == 3).all()
    assert (grid[6:10, 15:] == 255).all() and (grid[0] == 255).all()
