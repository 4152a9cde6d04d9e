"""The linear layer of the transformers, and its product for large weights."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGE_WEIGHT = 1 << 19  # numbers; DALL·E mini's matrices are larger, the built-in world's smaller
LARGE_PRODUCT = 1 << 20  # rows times numbers; below it, a call of oneDNN costs more than it saves
FEW_ROWS = 2  # rows of one guided image


class Linear(nn.Linear):
    """`nn.Linear` without bias, computed by `linear`."""

    def __init__(self, width_in: int, width_out: int):
        super().__init__(width_in, width_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight)


class FrozenLinear(nn.Linear):
    """An `nn.Linear` with bias of a network that is never trained, computed by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32 or torch.is_autocast_enabled(x.device.type):
            # In half precision, a product that is rounded before the bias is added rounds twice.
            return F.linear(x, self.weight, self.bias)
        out = linear(x, self.weight)
        return out if self.bias is None else out.add_(self.bias)


def use_frozen_linear(network: nn.Module) -> None:
    """Makes every plain `nn.Linear` of a frozen network a `FrozenLinear`, with the same tensors."""
    for module in network.modules():
        if type(module) is nn.Linear:  # a subclass computes something else
            module.__class__ = FrozenLinear


class PackedLinear(nn.Module):
    """A `Linear` that only multiplies, with its weight laid out as oneDNN reads it.

    For draws of several images on CPUs: a product of a large matrix by a few rows otherwise spends a fifth to
    a third of its time on laying the matrix out (benchmarks/RESULTS.md). There is no gradient.

    Args:
        weight: [N, K], for which `is_large` holds.
        rows: number of rows that the layout is best for.
    """

    def __init__(self, weight: Tensor, rows: int):
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)

    def forward(self, x: Tensor) -> Tensor:
        return onednn_product(x, self.packed)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """`F.linear` without bias, by whichever product is faster.

    On CPUs torch uses MKL for products in float32, which is slow on AMD's. For large products, those of the
    gradients too, oneDNN, which ships with torch, takes 0.4 to 0.7 of the time, and for two rows of a large
    weight MKL's `weight @ columns` a third (benchmarks/RESULTS.md).

    Args:
        x: [..., K].
        weight: [N, K].

    Returns:
        [..., N].
    """
    if torch.is_autocast_enabled("cpu") or not is_plain(weight):
        return F.linear(x, weight)
    rows, with_gradient = x.numel() // x.shape[-1], torch.is_grad_enabled()
    if rows > FEW_ROWS and rows * weight.numel() >= LARGE_PRODUCT:
        return OnednnProduct.apply(x, weight) if with_gradient else onednn_product(x, weight)
    if rows > FEW_ROWS or with_gradient or not is_large(weight):
        return F.linear(x, weight)
    columns = x.reshape(rows, x.shape[-1])
    if rows == 1:
        columns = columns.repeat(2, 1)  # with one column MKL takes twice as long as with two
    return (weight @ columns.T)[:, :rows].T.contiguous().view(*x.shape[:-1], len(weight))


def is_large(weight: Tensor) -> bool:
    """Whether oneDNN is available and the weight is so large that it is faster for any number of rows."""
    return weight.numel() >= LARGE_WEIGHT and is_plain(weight)


def is_plain(weight: Tensor) -> bool:
    """Whether oneDNN is available and multiplies the weight: in float32 on a CPU."""
    plain = weight.device.type == "cpu" and weight.dtype == torch.float32
    return plain and torch.backends.mkldnn.is_available()


class OnednnProduct(torch.autograd.Function):
    """`onednn_product` of x [..., K] and a weight [N, K], with its gradients, which are such products too."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return onednn_product(x, weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight = ctx.needs_input_grad
        columns = gradient.reshape(-1, len(weight)).T
        return (
            onednn_product(gradient, weight.T) if of_x else None,
            onednn_product(columns, x.reshape(-1, x.shape[-1]).T) if of_weight else None,
        )


def onednn_product(x: Tensor, weight: Tensor) -> Tensor:
    """`F.linear` without bias and without gradient, for a weight that may be packed.

    Source: https://github.com/pytorch/pytorch/blob/v2.11.0/aten/src/ATen/native/mkldnn/Linear.cpp, which
        compiled models call.
    """
    assert not (torch.is_grad_enabled() and x.requires_grad), "it has no gradient"
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
