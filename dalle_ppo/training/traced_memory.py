"""How much memory a computation needs, found by running it on tensors without data."""

import copy
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make, for as long as something refers to them.

    Args:
        known: tensors that exist already and are not counted.
    """

    def __init__(self, known: Iterable[Tensor] = ()):
        super().__init__()
        self.now = self.peak = 0
        self.seen: dict[int, Any] = {}
        for tensor in known:
            self._add(tensor, counted=False)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._add(leaf)
        return out

    def _add(self, tensor: Tensor, counted: bool = True) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes() if counted else 0
        if key in self.seen:
            return

        def gone(_) -> None:
            self.now -= size
            self.seen.pop(key, None)

        self.seen[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def without_data(module: nn.Module) -> nn.Module:
    """A copy of a module whose parameters and buffers have no data; call it where tensors are fake."""
    memo: dict[int, Any] = {}
    for p in module.parameters():
        memo[id(p)] = nn.Parameter(torch.empty(p.shape, dtype=p.dtype), requires_grad=p.requires_grad)
        memo[id(p)].grad = torch.empty(p.shape, dtype=p.dtype) if p.requires_grad else None
    for b in module.buffers():
        memo[id(b)] = torch.empty(b.shape, dtype=b.dtype)
    return copy.deepcopy(module, memo)


def peak_bytes(
    compute: Callable[[list[nn.Module]], object],
    modules: Iterable[nn.Module],
    dtype: torch.dtype = torch.float32,
) -> int:
    """Bytes that a computation holds at its worst beyond parameters and their gradients.

    Nothing is computed and no memory is taken: all tensors are torch's fake ones, on a CPU. There, attention
    keeps what it keeps on a GPU.

    Args:
        compute: gets copies of the modules without data.
        modules: networks, on any device.
        dtype: of the products. The family's own autocast is for the real device, where nothing is computed.

    Source: https://docs.pytorch.org/docs/stable/torch.compiler_fake_tensor.html
    """
    with FakeTensorMode():
        copies = [without_data(module) for module in modules]
        known = [t for m in copies for p in m.parameters() for t in (p, p.grad) if t is not None]
        known += [buffer for m in copies for buffer in m.buffers()]
        narrow = torch.autocast("cpu", dtype, enabled=dtype != torch.float32)
        with LiveBytes(known) as live, narrow:
            compute(copies)
    return live.peak
