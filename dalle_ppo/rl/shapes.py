"""A shape check for the functions of this package."""

from torch import Tensor


def check_same_shape(**tensors: Tensor) -> None:
    """Refuse tensors that would broadcast: [B] against [B, T] gives numbers, not an error.

    Args:
        tensors: the tensors, each under its name in the message.

    Raises:
        ValueError: the shapes differ.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        raise ValueError(f"shapes must be equal, got {listed}")
