"""What reading a Keras model gives: a chain of layers."""

from __future__ import annotations

from dataclasses import dataclass

from dalle_ppo.models.heads.head_layers import LayerSpec

MAX_WIDTH = 65_536
"""Of the input; no embedding has more numbers."""


def check_width(width: int) -> int:
    """The width of the input as it is.

    Raises:
        ValueError: no embedding is that wide; layers would be made as wide as it says.
    """
    if not 0 < width <= MAX_WIDTH:
        raise ValueError(f"the model reads {width} numbers; an embedding has at most {MAX_WIDTH}")
    return width


@dataclass(frozen=True)
class Chain:
    """A Keras model as our layers, which compute in float32.

    layers: from the input to the output.
    dimension: width of the input.
    rounding: "float16", "bfloat16" or "int8" if the original rounds what it computes to that; else "".
    """

    layers: list[LayerSpec]
    dimension: int
    rounding: str = ""
