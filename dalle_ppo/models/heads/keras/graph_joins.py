"""Recognises layers that TensorFlow computes in several operations, by the branches that meet in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from dalle_ppo.models.heads.head_layers import LayerSpec
from dalle_ppo.models.heads.keras.graph_values import Step, Stream

Steps = tuple[Step, ...]
Shape = tuple[Any, ...]

# Activations: the operation, what the two branches did before, its name, and the numbers it must hold.
_ACTIVATIONS: list[tuple[tuple[str, ...], tuple[str, ...], str, tuple[float, ...]]] = [
    ((), ("sigmoid",), "silu", ()),
    ((), ("mul", "sigmoid"), "silu", (1.0,)),
    ((), ("softplus", "tanh"), "mish", ()),
    (("mul",), ("neg", "mul", "erfc"), "gelu", (0.5, 0.5**0.5)),
    (("mul",), ("div", "erf", "add"), "gelu", (0.5, 2**0.5, 1.0)),
]


def join(op: str, name: str, first: Stream, second: Stream) -> Stream:
    """The stream after an operation on two branches from one point: one layer if it is recognised.

    If not, the branches are kept, because they may be part of a larger layer; what is left of them in the
    end is refused by `to_layers`.
    """
    base = _common(first.steps, second.steps)
    branches = tuple(sorted((first.steps[base:], second.steps[base:]), key=_order))
    joined = Step("joined", options=(("op", op), ("name", name)), branches=branches)
    build = _PATTERNS.get(_shape_of_step(joined))
    return Stream((*first.steps[:base], (build(*branches) if build else None) or joined))


def _common(first: Steps, second: Steps) -> int:
    """How many steps two streams share from the start."""
    base = 0
    while base < min(len(first), len(second)) and first[base] is second[base]:
        base += 1
    return base


def _shape_of_step(step: Step) -> Any:
    """A step's kind; for a joined one the operation and the shapes of its branches."""
    return (dict(step.options)["op"], *map(_shape, step.branches)) if step.branches else step.kind


def _shape(steps: Steps) -> Shape:
    return tuple(map(_shape_of_step, steps))


def _order(steps: Steps) -> tuple[int, str]:
    return _order_of_shape(_shape(steps))


def _order_of_shape(shape: Shape) -> tuple[int, str]:
    return len(shape), repr(shape)


def _pattern(op: str, *branches: Shape) -> Shape:
    return op, *sorted(branches, key=_order_of_shape)


def _numbers(steps: Steps) -> list[np.ndarray]:
    """The numbers of a branch, in order, without those of branches inside it."""
    return [step.numbers for step in steps if step.numbers is not None]


def _is(value: np.ndarray, expected: float) -> bool:
    return value.size == 1 and bool(np.isclose(float(value.ravel()[0]), expected, rtol=1e-5, atol=0))


def _spec(type_: str, tensors: dict[str, np.ndarray] | None = None, **options: float) -> Step:
    numbers = {k: torch.from_numpy(v.ravel().astype(np.float32)) for k, v in (tensors or {}).items()}
    return Step("spec", spec=LayerSpec(type_, options, numbers))


def _activation(name: str, expected: tuple[float, ...]) -> Callable[[Steps, Steps], Step | None]:
    def build(first: Steps, second: Steps) -> Step | None:
        found = [*_numbers(first), *_numbers(second)]
        fits = len(found) == len(expected) and all(map(_is, found, expected))
        return Step("activation", options=(("name", name),)) if fits else None

    return build


def _prelu(positive: Steps, negative: Steps) -> Step | None:
    """relu(x) + (-alpha) * relu(-x)."""
    return _spec("prelu", {"slope": -negative[-1].numbers})


def _unit_norm(x: Steps, scale: Steps) -> Step | None:
    """x * minimum(rsqrt(sum of squares), bound); in Keras 2, x * rsqrt(maximum(sum of squares, bound))."""
    (bound,) = (float(number) for number in _numbers(scale))
    return _spec("unit_norm", largest=bound if scale[-1].kind == "minimum" else bound**-0.5)


def _rms_norm(x: Steps, scale: Steps) -> Step | None:
    """x * rsqrt(mean of squares + epsilon)."""
    (epsilon,) = _numbers(scale)
    return _spec("rms_norm", epsilon=float(epsilon)) if epsilon.size == 1 else None


# Keras' LayerNormalization: x * scale + (-mean * scale + beta); scale is rsqrt(variance + epsilon) * gamma.
_VARIANCE = (_pattern("SquaredDifference", (), ("mean",)), "mean", "add", "rsqrt")


def _layer_norm(first: Steps, second: Steps) -> Step | None:
    tensors: dict[str, np.ndarray] = {}
    shifts = [branch for branch in (first, second) if "mean" in map(_kind_inside, branch[0].branches)]
    (shift,) = shifts
    scaled = second if shift is first else first
    scales = [max(branch[0].branches, key=len) for branch in (shift, scaled)]
    if not all(a is b for a, b in zip(*scales, strict=True)):
        return None
    epsilon, *gamma = _numbers(scales[0])
    if gamma:
        tensors["gamma"] = gamma[0]
    if len(shift) > 1:
        tensors["beta"] = shift[1].numbers
    return _spec("layer_norm", tensors, epsilon=float(epsilon)) if epsilon.size == 1 else None


def _kind_inside(branch: Steps) -> str:
    return branch[0].kind if branch else ""


# Keras' int8 Dense: both x and what it is divided by in the end hold 127 / (largest |x| + epsilon).
_SCALE = ("abs", "max", "add", "over")
_ROUNDED = (_pattern("Mul", (), _SCALE), "round", "minimum", "maximum", "cast")


def _int8_dense(first: Steps, second: Steps) -> Step | None:
    """x rounded to -127..127, times the kernel, divided by both scales: as if x were not rounded."""
    rounded, scales = (first, second) if first[-1].kind == "cast" else (second, first)
    bounds = [*_numbers(rounded)[:2], _numbers(scales)[1]]
    if not all(map(_is, bounds, (127.0, -127.0, 127.0))):
        return None
    kernel = next(step.numbers for step in rounded if step.kind == "dense")
    return Step("dense", kernel.astype(np.float32) / scales[-1].numbers)


_PATTERNS: dict[Shape, Callable[[Steps, Steps], Step | None]] = {
    **{_pattern("Mul", a, b): _activation(name, numbers) for a, b, name, numbers in _ACTIVATIONS},
    _pattern("AddV2", ("relu",), ("neg", "relu", "mul")): _prelu,
    _pattern("Mul", (), ("square", "sum", "rsqrt", "minimum")): _unit_norm,
    _pattern("Mul", (), ("square", "sum", "maximum", "rsqrt")): _unit_norm,
    _pattern("Mul", (), ("square", "mean", "add", "rsqrt")): _rms_norm,
    **{
        _pattern(
            "AddV2",
            (_pattern("Mul", (), (*_VARIANCE, *gamma)),),
            (_pattern("Mul", ("mean", "neg"), (*_VARIANCE, *gamma)), *beta),
        ): _layer_norm
        for gamma in ((), ("mul",))
        for beta in ((), ("add",))
    },
    _pattern("RealDiv", (*_ROUNDED, "dense", "cast"), (*_SCALE, "mul")): _int8_dense,
}


def select(name: str, condition: Stream, yes: Stream, no: Stream) -> Stream:
    """where(x > 0, elu(x), alpha * elu(x)), as Keras computes elu with an alpha.

    Raises:
        ValueError: it is any other choice between branches.
    """
    base = len(condition.steps) - 1
    heads = [stream.steps[:base] for stream in (condition, yes, no)]
    kinds = [tuple(step.kind for step in stream.steps[base:]) for stream in (condition, yes, no)]
    same = all(a is b is c for a, b, c in zip(*heads, strict=True)) if len({*map(len, heads)}) == 1 else False
    if not same or kinds != [("greater",), ("elu",), ("elu", "mul")] or condition.steps[-1].numbers != 0:
        raise ValueError(f"operation SelectV2 ({name}) joins branches: only a chain of layers is supported")
    return Stream(condition.steps[:base]).then("activation", name="elu", alpha=float(no.steps[-1].numbers))
