"""Gradient checkpointing: a decoder layer's activations are computed again rather than kept."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from dalle_ppo.models.dalle.bart import BartDecoder, CrossStates


def run_layers(decoder: "BartDecoder", x: Tensor, cross: "CrossStates") -> Tensor:
    """All layers of a decoder, one after the other.

    Where the decoder's `checkpointing` is on and there is a gradient, only the input of each layer is kept,
    and the backward pass computes the layer again: the same numbers, for a third more time.

    Args:
        decoder: supplies layers.
        x: embedded tokens, [N, T, D].
        cross: what they attend to.

    Returns:
        [N, T, D], before the final norm.

    Source: https://arxiv.org/abs/1604.06174; https://docs.pytorch.org/docs/stable/checkpoint.html
    """
    recompute = decoder.checkpointing and torch.is_grad_enabled()
    for layer, keys_values in zip(decoder.layers, cross.keys_values, strict=True):
        if recompute:
            # There is no dropout, so there is no random state to restore.
            x = checkpoint(layer, x, keys_values, cross.mask, use_reentrant=False, preserve_rng_state=False)
        else:
            x = layer(x, keys_values, cross.mask)
    return x


def set_checkpointing(network: nn.Module, on: bool) -> None:
    """Turns gradient checkpointing on or off in every decoder inside a network."""
    for part in network.modules():
        if hasattr(type(part), "checkpointing"):
            part.checkpointing = on
