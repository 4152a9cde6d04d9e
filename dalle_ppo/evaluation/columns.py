"""The columns of an evaluation: arrays with one entry per image, by name."""

from collections.abc import Mapping

import numpy as np

Columns = Mapping[str, np.ndarray]


def unknown(*names: str, num: int) -> dict[str, np.ndarray]:
    """Columns of `num` missing values."""
    return {name: np.full(num, np.nan) for name in names}
