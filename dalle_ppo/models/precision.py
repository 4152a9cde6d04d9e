"""Half precision: matrices of frozen networks stored in bfloat16, and products computed in it."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

LARGE_PARTS = nn.Linear | nn.Conv2d
"""Layers whose weights are nearly all of a network. Norms, biases and embeddings stay as they are."""


def narrow(module: nn.Module, dtype: torch.dtype, keep: tuple[str, ...] = ()) -> None:
    """Stores the weights of linear layers and convolutions in `dtype`, in place.

    Autocast rounds these weights before each product anyway. So under autocast the network computes what
    it would with weights in float32, bit for bit.

    Args:
        module: a frozen network; runs in `autocast` only from then on.
        dtype: of its matrices.
        keep: names of layers that are left as they are.
    """
    for name, part in module.named_modules():
        if isinstance(part, LARGE_PARTS) and name not in keep:
            part.weight.data = part.weight.data.to(dtype)
        elif isinstance(part, nn.MultiheadAttention) and part.in_proj_weight is not None:
            part.in_proj_weight.data = part.in_proj_weight.data.to(dtype)


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager:
    """Products in `dtype` with weights and sums as they are stored; does nothing for float32 and wider."""
    if dtype.itemsize >= torch.float32.itemsize:
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype)
