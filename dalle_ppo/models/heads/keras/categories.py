"""Turns a table of numbers as text into intervals of float32, so that looking up a value needs no text.

TensorFlow's AsString prints a float32 as C's `printf("%f")` does: six decimals, the exact value rounded half
to even, "-0.000000" for small negative numbers, "inf", "-inf", "nan". Python formats in
the same way, so the table is built with it.
"""

from __future__ import annotations

import numpy as np
import torch

from dalle_ppo.models.heads.head_layers import LayerSpec

_UNREACHABLE = np.iinfo(np.int32).max
_INFINITY_BITS = 0x7F800000


def category_encoding(
    columns: list[int], tables: list[tuple[np.ndarray, np.ndarray]], sources: list[str]
) -> LayerSpec:
    """Make the layer for some categorical columns.

    Args:
        columns: which columns of the embedding, ascending.
        tables: for each, the texts (bytes) and the index of each.
        sources: for each, its name in the model (for messages).

    Returns:
        A `category_encoding` layer, see `CategoryEncoding` for its tensors.
    """
    rows = [_intervals(*table, source) for table, source in zip(tables, sources, strict=True)]
    # At least one entry, even if no number prints as any of the texts: `CategoryEncoding` reads one.
    width = max([1, *map(len, rows)])
    lower = np.full((len(rows), width), _UNREACHABLE, dtype=np.int32)
    upper = lower.copy()
    index = np.zeros((len(rows), width), dtype=np.float32)
    for k, row in enumerate(rows):
        for n, (first, last, value) in enumerate(row):
            lower[k, n], upper[k, n], index[k, n] = first, last, value
    tensors = {"columns": torch.tensor(columns, dtype=torch.int64)}
    tensors |= {"lower": torch.from_numpy(lower), "upper": torch.from_numpy(upper)}
    return LayerSpec("category_encoding", {}, {**tensors, "index": torch.from_numpy(index)})


def _intervals(texts: np.ndarray, values: np.ndarray, source: str) -> list[tuple[int, int, float]]:
    """First and last float32 (as ordered integers) that print as each text, and its index; ascending."""
    if texts.shape != values.shape:
        raise ValueError(f"{source}: {texts.shape} texts but {values.shape} indices")
    rows = []
    for text, value in zip(texts.ravel(), values.ravel(), strict=True):
        bounds = float32_bounds(text.decode("utf-8", errors="replace"))
        if bounds is not None:
            rows.append((*bounds, float(np.float32(value))))
    return sorted(rows)


def float32_bounds(text: str) -> tuple[int, int] | None:
    """The float32 numbers that print as `text`, as their first and last `ordered_bits`.

    Returns:
        None if no float32 prints as it (an entry such as "0.5" or "cat" can never be found).
    """
    if text in ("nan", "-nan"):
        low, high = _INFINITY_BITS + 1, 0x7FFFFFFF
        return (low, high) if text == "nan" else (-high - 1, -low - 1)
    try:
        middle = float(text)
    except ValueError:
        return None
    if f"{middle:f}" != text:
        return None
    # Half a unit of the last decimal to either side, plus a few more numbers for the rounding of this sum;
    # the sign keeps the many numbers around zero apart.
    low, high = _bits(middle - 0.5e-6) - 3, _bits(middle + 0.5e-6) + 3
    low, high = (low, min(high, -1)) if text.startswith("-") else (max(low, 0), high)
    while low <= high and _text(low) != text:
        low += 1
    while low <= high and _text(high) != text:
        high -= 1
    return (low, high) if low <= high else None


def _bits(value: float) -> int:
    """The nearest float32 as an ordered integer, see `ordered_bits`."""
    with np.errstate(over="ignore"):
        raw = int(np.float32(value).view(np.int32))
    return raw if raw >= 0 else raw ^ 0x7FFFFFFF


def _text(bits: int) -> str:
    """What AsString prints for the float32 with these ordered bits."""
    raw = np.int32(bits if bits >= 0 else bits ^ 0x7FFFFFFF)
    return f"{float(raw.view(np.float32)):f}"
