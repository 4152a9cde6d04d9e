"""What flows through a TensorFlow graph while it is read: handles, columns, and the chain itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dalle_ppo.models.heads.head_layers import ACTIVATIONS, LayerSpec
from dalle_ppo.models.heads.keras.categories import category_encoding


@dataclass(frozen=True)
class Step:
    """One operation on the chain: its kind, its numbers (if any) and its options.

    A step that two branches make together, not (yet) recognised as one layer, is "joined" and holds both.
    """

    kind: str
    numbers: np.ndarray | None = None
    options: tuple[tuple[str, Any], ...] = ()
    spec: LayerSpec | None = None
    branches: tuple[tuple[Step, ...], ...] = ()


@dataclass(frozen=True)
class Stream:
    """The embedding partway through the chain: the steps so far. Compared by identity of the steps."""

    steps: tuple[Step, ...] = ()

    def then(self, kind: str, numbers: np.ndarray | None = None, **options: Any) -> Stream:
        """The stream after one more step."""
        return Stream((*self.steps, Step(kind, numbers, tuple(options.items()))))


@dataclass(eq=False)
class Handle:
    """A variable or a table, and its content."""

    name: str
    content: Any = None


@dataclass(frozen=True)
class Column:
    """One column of the input while AutoKeras' encoder has it separate; `form` says what was done to it."""

    source: Stream
    position: int
    form: str = "raw"  # raw, is_nan, zeros, number (NaN made 0), text, index
    table: Handle | None = None


def encode(columns: list[Column], name: str) -> Stream:
    """Put the columns back together: AutoKeras' multi-category encoding.

    Raises:
        ValueError: columns are missing, moved or not treated as AutoKeras does.
    """
    source = columns[0].source
    order = [(column.source, column.position) for column in columns]
    if order != [(source, i) for i in range(len(columns))]:
        raise ValueError(f"operation ConcatV2 ({name}) does not put the columns back in their order")
    strange = sorted({column.form for column in columns} - {"number", "index"})
    if strange:
        raise ValueError(f"operation ConcatV2 ({name}) takes columns as {', '.join(strange)}")
    coded = [column for column in columns if column.form == "index"]
    sources = [f"table of column {column.position}" for column in coded]
    for column, table in zip(coded, sources, strict=True):
        if column.table is None or column.table.content is None:
            raise ValueError(f"{table}: the model never fills it")
    tables = [column.table.content for column in coded]
    spec = category_encoding([column.position for column in coded], tables, sources)
    return Stream((*source.steps, Step("spec", spec=spec)))


def to_layers(steps: tuple[Step, ...], dimension: int) -> list[LayerSpec]:
    """Turn steps into layers, merging the steps of one Keras layer.

    Args:
        steps: from the input to the output.
        dimension: width of the input.
    """
    layers: list[LayerSpec] = []
    width, position = dimension, 0
    while position < len(steps):
        step = steps[position]
        following = steps[position + 1] if position + 1 < len(steps) else None
        partner = following if following and (step.kind, following.kind) in _PAIRS else None
        if step.kind == "dense":
            width = step.numbers.shape[1]
        layers.append(_layer(step, partner, width))
        position += 2 if partner else 1
    return layers


_PAIRS = {("dense", "add"), ("sub", "div"), ("mul", "add")}


def _layer(step: Step, partner: Step | None, width: int) -> LayerSpec:
    def numbers(of: Step | None, default: float) -> torch.Tensor:
        value = np.float32(default) if of is None else of.numbers
        if value.size not in (1, width):
            raise ValueError(f"{of.kind} of {value.shape} numbers to {width} columns is not supported")
        return torch.from_numpy(np.broadcast_to(value.ravel(), (width,)).astype(np.float32))

    if step.kind == "spec":
        return step.spec
    if step.kind == "joined":
        op, name = (value for _, value in step.options)
        raise ValueError(f"operation {op} ({name}) joins two branches: only a chain of layers is supported")
    if step.kind == "activation":
        return LayerSpec("activation", dict(step.options))
    if step.kind == "dense":
        bias = {} if partner is None else {"bias": numbers(partner, 0)}
        return LayerSpec("dense", {}, {"kernel": torch.from_numpy(step.numbers.astype(np.float32)), **bias})
    if step.kind in ("sub", "div"):
        mean, scale = (step, partner) if step.kind == "sub" else (None, step)
        return LayerSpec("normalization", {}, {"mean": numbers(mean, 0), "scale": numbers(scale, 1)})
    if step.kind in ("mul", "add"):
        scale, shift = (step, partner) if step.kind == "mul" else (None, step)
        return LayerSpec("scale_shift", {}, {"scale": numbers(scale, 1), "shift": numbers(shift, 0)})
    if step.kind == "neg":
        return LayerSpec("scale_shift", {}, {"scale": -numbers(None, 1), "shift": numbers(None, 0)})
    if step.kind not in ACTIVATIONS:
        raise ValueError(f"operation {step.kind} alone is not supported in a detector")
    return LayerSpec("activation", {"name": step.kind, **dict(step.options)})
