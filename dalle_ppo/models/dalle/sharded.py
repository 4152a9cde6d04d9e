"""Decoders and critics divided among processes by torch's FSDP2, one decoder layer at a time.

A layer's weights are whole only while it computes. So it computes the keys and values of captions too, which
otherwise is done ahead of all layers.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dalle_ppo.models.dalle.bart import BartDecoder, CrossStates, DecoderLayer, TextStates, frozen_decoder
from dalle_ppo.models.dalle.critic import Critic
from dalle_ppo.models.sharding import whole

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class ShardedLayer(DecoderLayer):
    """A layer that is given captions' states in place of their keys and values."""

    def forward(self, x: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        return super().forward(x, self.encoder_attn.keys_values(states), mask)


class ShardedDecoder(BartDecoder):
    """A decoder of such layers. It scores and learns; `gathered_decoder` makes one that draws."""

    def cross_states(self, text: TextStates) -> CrossStates:
        """What each layer reads of M captions: their states."""
        states = text.states.to(self.embed_positions.weight.dtype)
        return CrossStates((states,) * len(self.layers), text.mask[:, None, None, :])


class ShardedCritic(Critic):
    """A critic whose values are no view of another tensor; FSDP2 warns of those, as hooks may get lost."""

    def forward(self, tokens: Tensor, cross: CrossStates, start_token: int | None = None) -> Tensor:
        return super().forward(tokens, cross, start_token).clone()


def shard(network: nn.Module, mesh: "DeviceMesh") -> None:
    """Divides a decoder or critic among processes, in place, and moves it to the mesh's devices.

    Gradients become sums over the processes. Every process must run the same passes in the same order.

    Args:
        network: the same in all processes, on any device.
        mesh: the processes, in one dimension.

    Source: https://docs.pytorch.org/docs/2.11/distributed.fsdp.fully_shard.html
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    decoders = [part for part in network.modules() if isinstance(part, BartDecoder)]
    for decoder in decoders:
        decoder.__class__ = ShardedDecoder
        for layer in decoder.layers:
            layer.__class__ = ShardedLayer
            fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    if isinstance(network, Critic):
        network.__class__ = ShardedCritic
    fully_shard(network, mesh=mesh, reshard_after_forward=True)
    for part in network.modules():
        if hasattr(part, "set_gradient_divide_factor"):
            part.set_gradient_divide_factor(1.0)  # losses are divided by the tokens of all processes
            part.set_force_sum_reduction_for_comms(True)  # in float32 it would ask for what gloo lacks
    if network in decoders:
        register_fsdp_forward_method(network, "head")


@torch.no_grad()
def gathered_decoder(decoder: BartDecoder, dtype: torch.dtype | None = None) -> BartDecoder:
    """A whole frozen copy to draw from, put together one matrix after the other.

    Args:
        decoder: divided.
        dtype: of all weights but the head's; by default that of the decoder's embeddings.
    """
    dtype = dtype or decoder.embed_positions.weight.dtype
    weights = {}
    for name, part in decoder.state_dict().items():
        tensor = whole(part)
        weights[name] = tensor if name.startswith("lm_head.") else tensor.to(dtype)
    return frozen_decoder(decoder.config, weights)
