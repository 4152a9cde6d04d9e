"""Gradient checkpointing: a decoder layer's activations are computed again rather than kept."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def run_layers(
    layers: nn.ModuleList,
    x: Tensor,
    keys_values: tuple[tuple[Tensor, Tensor], ...],
    mask: Tensor,
    checkpointing: bool,
) -> Tensor:
    """All layers of a decoder, one after the other.

    With checkpointing, where there is a gradient, only the input of each layer is kept, and the backward pass
    computes the layer again: the same numbers, for a third more time.

    Args:
        layers: the decoder's.
        x: embedded tokens, [N, T, D].
        keys_values: what each layer reads of the captions.
        mask: of the captions.
        checkpointing: whether it is on.

    Returns:
        [N, T, D], before the final norm.

    Source: https://arxiv.org/abs/1604.06174; https://docs.pytorch.org/docs/stable/checkpoint.html
    """
    recompute = checkpointing and torch.is_grad_enabled()
    for layer, of_layer in zip(layers, keys_values, strict=True):
        if recompute:
            # There is no dropout, so there is no random state to restore.
            x = checkpoint(layer, x, of_layer, mask, use_reentrant=False, preserve_rng_state=False)
        else:
            x = layer(x, of_layer, mask)
    return x


def set_checkpointing(network: nn.Module, on: bool) -> None:
    """Turns gradient checkpointing on or off in every decoder inside a network."""
    for part in network.modules():
        if hasattr(type(part), "checkpointing"):
            part.checkpointing = on
