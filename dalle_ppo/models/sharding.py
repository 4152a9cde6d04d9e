"""Tensors that processes hold in parts, by torch's FSDP2 (`DTensor`).

Outside forward and backward passes a divided network is always in parts. Everything here that puts parts
together must be called by all processes, in the same order.
"""

from collections.abc import Iterable, Mapping

from torch import Tensor, nn


def is_divided(tensor: Tensor) -> bool:
    """Whether this process holds a part only; by a method's name, as importing DTensor takes a while."""
    return hasattr(tensor, "full_tensor")


def is_sharded(module: nn.Module) -> bool:
    """Whether a network is divided among processes."""
    return any(is_divided(parameter) for parameter in module.parameters())


def most_of(number: int, module: nn.Module) -> int:
    """The largest number of the processes that hold a network in parts; of a whole one, this number."""
    part = next((parameter for parameter in module.parameters() if is_divided(parameter)), None)
    if part is None:
        return number
    import torch
    import torch.distributed as dist

    most = torch.tensor(number, device=own_part(part).device)
    dist.all_reduce(most, dist.ReduceOp.MAX, group=part.device_mesh.get_group())
    return int(most)


def whole(tensor: Tensor) -> Tensor:
    """All parts of a tensor, in every process; a tensor that is not divided itself."""
    return tensor.full_tensor() if is_divided(tensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """This process's part, which may be empty; a tensor that is not divided itself."""
    return tensor.to_local() if is_divided(tensor) else tensor


def divided_like(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor as `other` is held: this process's part of it, on the same device; no process waits.

    Args:
        tensor: the same in all processes.
        other: of the same shape; of another one, or not divided, `tensor` is returned. So is a part.
    """
    if is_divided(tensor) or not is_divided(other) or tensor.shape != other.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    placed = tensor.to(other.device)
    return distribute_tensor(placed, other.device_mesh, other.placements, src_data_rank=None)


def divided_weights(tensors: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Whole weights as a network holds its own, by name."""
    own = module.state_dict()
    return {name: divided_like(t, own[name]) if name in own else t for name, t in tensors.items()}


def divided_statistics(tensors: Mapping[str, Tensor], parameters: Iterable[Tensor]) -> dict[str, Tensor]:
    """An optimiser's whole statistics, named `INDEX.NAME`, as it holds the parameter of that index."""
    own = list(parameters)
    places = {key: int(key.split(".")[0]) for key in tensors}
    return {
        key: divided_like(t, own[places[key]]) if places[key] < len(own) else t for key, t in tensors.items()
    }
