"""What reading a Keras model gives: a chain of layers."""

from __future__ import annotations

from dataclasses import dataclass

from dalle_ppo.models.heads.head_layers import LayerSpec


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
