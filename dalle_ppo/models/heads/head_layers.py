"""The layers of a detector or score head on CLIP embeddings, rebuilt from plain tensors.

Everything is a buffer, not a parameter: a reward's head is never trained by accident, while gradients
still flow to the embedding. Each layer keeps the order of floating-point operations of the Keras original.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[..., Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "selu": F.selu,
    "gelu": F.gelu,
    "silu": F.silu,
    "mish": F.mish,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "sigmoid": torch.sigmoid,
    "hard_sigmoid": F.hardsigmoid,
    "tanh": torch.tanh,
    "exponential": torch.exp,
    "softmax": partial(F.softmax, dim=-1),
}

MAX_SUMMED = 384  # the longest sum that TensorFlow's matmul on a CPU does in one go


@dataclass(frozen=True)
class LayerSpec:
    """One layer as it is stored: its type, its plain options and its tensors."""

    type: str
    options: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def describe(self) -> str:
        """One readable line: type, options and tensor shapes."""
        parts = [f"{k}={v}" for k, v in self.options.items()]
        parts += [f"{k}{list(t.shape)}" for k, t in self.tensors.items()]
        return f"{self.type}({', '.join(parts)})"


class CategoryEncoding(nn.Module):
    """Replaces some columns by the index of their value's text in a table, as AutoKeras' encoder does.

    AutoKeras formats the value as text with six decimals and looks the text up. The float32 numbers that
    print as one text are an interval, so the table holds intervals instead of texts: no strings, no rounding,
    any device. Bounds are float32 bit patterns mapped to ordered integers (see `ordered_bits`), which also
    tells -0.000000 from 0.000000 and places infinities and NaN. Short tables are padded with intervals that
    only one NaN pattern can match, and with index 0, which means "unknown" anyway.

    Args:
        columns: [K] int64, the columns that are categories.
        lower, upper: [K, N] int32, each row ascending: first and last number that print as the text.
        index: [K, N] float32, what the text is replaced by.
        smooth: use index 0 for every value, which makes the head continuous but no longer the published one.

    The layer also turns NaN in every other column into 0, as AutoKeras does.
    """

    def __init__(
        self, columns: Tensor, lower: Tensor, upper: Tensor, index: Tensor, *, smooth: bool = False
    ) -> None:
        super().__init__()
        self.smooth = smooth
        self.register_buffer("columns", columns)
        self.register_buffer("lower", lower)
        self.register_buffer("upper", upper)
        self.register_buffer("index", index)

    def forward(self, x: Tensor) -> Tensor:
        """Encode [B, D] float32; columns in `self.columns` become indices, the rest stay as they are."""
        numbers = torch.where(torch.isnan(x), torch.zeros_like(x), x)
        if self.smooth:
            return numbers.index_fill(1, self.columns, 0.0)
        keys = ordered_bits(x.detach()[:, self.columns].T.contiguous())
        position = torch.searchsorted(self.upper, keys).clamp(max=self.upper.shape[1] - 1)
        known = (self.lower.gather(1, position) <= keys) & (keys <= self.upper.gather(1, position))
        found = torch.where(known, self.index.gather(1, position), 0.0)
        return numbers.index_copy(1, self.columns, found.T)


def ordered_bits(x: Tensor) -> Tensor:
    """Map float32 to int32 so that integer order is number order, with -0.0 just below 0.0."""
    bits = x.view(torch.int32)
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


class Normalization(nn.Module):
    """(x - mean) / scale, in this order, as Keras' Normalization computes it."""

    def __init__(self, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D] -> [B, D]."""
        return (x - self.mean) / self.scale


class ScaleShift(nn.Module):
    """x * scale + shift: batch normalisation with its moving statistics folded in."""

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D] -> [B, D]."""
        return x * self.scale + self.shift


class Dense(nn.Module):
    """x @ kernel + bias, with the kernel as Keras stores it: [in, out].

    The order of summation sets the last bits: for the ViT-B/32 detector TensorFlow is 1.4e-6 from the exact
    probability, so a more exact sum would be no closer to it. On a CPU, TensorFlow sums inputs wider than
    384 in equal parts of at most that width, with oneDNN. With the same parts and the same library (where
    torch has it) the published reference is matched within 1e-7; torch's other matrix products within 2e-6.
    """

    def __init__(self, kernel: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.num_parts = -(-kernel.shape[0] // MAX_SUMMED)
        self.width = -(-kernel.shape[0] // self.num_parts)
        for i, part in enumerate(kernel.split(self.width)):
            self.register_buffer(f"weight_{i}", part.T.contiguous())
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in] -> [B, out]."""
        total = None
        for i, part in enumerate(x.split(self.width, dim=1)):
            product = _product(part, self.get_buffer(f"weight_{i}"))
            total = product if total is None else total + product
        return total if self.bias is None else total + self.bias


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight.T, with oneDNN where possible: on a CPU, when no gradient is needed (it has none)."""
    plain = x.device.type != "cpu" or (x.requires_grad and torch.is_grad_enabled())
    if plain or len(x) == 0 or not torch.backends.mkldnn.is_available():
        return F.linear(x, weight)
    return torch._C._nn.mkldnn_linear(x.contiguous().to_mkldnn(), weight).to_dense()


class LayerNorm(nn.Module):
    """Each row to mean 0 and variance 1, then scaled and shifted, in Keras' order of operations.

    Source: keras/src/backend/tensorflow/nn.py, `layer_normalization`. Keras 2 subtracts the mean first
    (`centred`): tf_keras/src/layers/normalization/layer_normalization.py.
    """

    def __init__(
        self,
        epsilon: float,
        gamma: Tensor | None = None,
        beta: Tensor | None = None,
        centred: bool = False,
    ) -> None:
        super().__init__()
        self.epsilon, self.centred = epsilon, centred
        self.register_buffer("gamma", gamma)
        self.register_buffer("beta", beta)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D] -> [B, D]."""
        mean = x.mean(1, keepdim=True)
        scale = torch.rsqrt((x - mean).square().mean(1, keepdim=True) + self.epsilon)
        if self.centred:
            x = (x - mean) * scale
            x = x if self.gamma is None else x * self.gamma
            return x if self.beta is None else x + self.beta
        scale = scale if self.gamma is None else scale * self.gamma
        shift = -mean * scale if self.beta is None else -mean * scale + self.beta
        return x * scale + shift


class RmsNorm(nn.Module):
    """Each row divided by the root of its mean square; the scale that follows is a `ScaleShift`."""

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """[B, D] -> [B, D]."""
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + self.epsilon)


class UnitNorm(nn.Module):
    """Each row divided by its length, that is, multiplied by 1 / length, but by `largest` at most."""

    def __init__(self, largest: float) -> None:
        super().__init__()
        self.largest = largest

    def forward(self, x: Tensor) -> Tensor:
        """[B, D] -> [B, D]."""
        return x * torch.rsqrt(x.square().sum(1, keepdim=True)).clamp(max=self.largest)


class Prelu(nn.Module):
    """relu(x) - slope * relu(-x), with a slope for each column or one for all."""

    def __init__(self, slope: Tensor) -> None:
        super().__init__()
        self.register_buffer("slope", slope)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D] -> [B, D]."""
        return F.relu(x) - self.slope * F.relu(-x)


class Activation(nn.Module):
    """An activation by name, with its options (such as the slope of leaky_relu)."""

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__()
        self.name, self.options = name, options
        self.function = ACTIVATIONS[name]

    def forward(self, x: Tensor) -> Tensor:
        """[B, D] -> [B, D]."""
        return self.function(x, **self.options)

    def extra_repr(self) -> str:
        """The name in `print(head)`."""
        return ", ".join([self.name, *(f"{k}={v}" for k, v in self.options.items())])


LAYERS: dict[str, Callable[..., nn.Module]] = {
    "category_encoding": CategoryEncoding,
    "normalization": Normalization,
    "scale_shift": ScaleShift,
    "dense": Dense,
    "layer_norm": LayerNorm,
    "rms_norm": RmsNorm,
    "unit_norm": UnitNorm,
    "prelu": Prelu,
    "activation": Activation,
}


def build_layers(specs: list[LayerSpec], *, smooth: bool = False) -> nn.Sequential:
    """Build the modules of a chain.

    Raises:
        ValueError: a layer or activation is unknown to this version, or tensors do not fit it.
    """
    modules = []
    for position, spec in enumerate(specs):
        extra = {"smooth": smooth} if spec.type == "category_encoding" else {}
        name = spec.options.get("name") if spec.type == "activation" else None
        if spec.type not in LAYERS or (name is not None and name not in ACTIVATIONS):
            known = ", ".join([*LAYERS, *ACTIVATIONS])
            raise ValueError(f"layer {position} is {spec.describe()}: not one of {known}")
        try:
            modules.append(LAYERS[spec.type](**spec.options, **spec.tensors, **extra))
        except TypeError as error:
            raise ValueError(f"layer {position} is {spec.describe()}: {error}") from None
    return nn.Sequential(*modules)
