"""The linear layer of the transformers, and its product where weights are large and rows few."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEW_ROWS = 128
LARGE_WEIGHT = 1 << 19  # numbers; DALL·E mini's matrices are larger, the built-in world's smaller


class Linear(nn.Linear):
    """`nn.Linear` without bias, by `linear`."""

    def __init__(self, width_in: int, width_out: int):
        super().__init__(width_in, width_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """`F.linear` without bias, in whichever order of the product is fast; with gradient, as `F.linear`.

    A step of the sampler multiplies a large matrix by a few rows. Where CPUs have to stream it from memory,
    `weight @ columns` takes a third to two thirds of the time of `rows @ weight.T` (benchmarks/RESULTS.md).

    Args:
        x: [..., K].
        weight: [N, K].

    Returns:
        [..., N].
    """
    rows = x.numel() // x.shape[-1]
    plain = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if not plain or torch.is_grad_enabled() or rows > FEW_ROWS or weight.numel() < LARGE_WEIGHT:
        return F.linear(x, weight)
    columns = x.reshape(rows, x.shape[-1]).T
    return (weight @ columns).T.contiguous().view(*x.shape[:-1], len(weight))
