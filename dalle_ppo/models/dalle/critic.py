"""The critic: a separate decoder with a value head over the image-token sequence."""

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from dalle_ppo.models.dalle.bart import BartDecoder, CrossStates, TextStates, at_least_float32


class Critic(nn.Module):
    """Predicts values of the states of an image's token sequence.

    A separate network: it shares nothing with the actor but the frozen text encoder, so that its loss
    cannot pull on the policy. It starts as a copy of the policy's trunk, with its head at zero.

    Args:
        decoder: the policy's decoder, copied (without its head).
        shared: use the decoder's own tensors, frozen, instead of a copy.
    """

    def __init__(self, decoder: BartDecoder, shared: bool = False):
        super().__init__()
        with torch.device("meta") if shared else nullcontext():
            self.trunk = BartDecoder(decoder.config, with_head=False)
        self.trunk.load_state_dict(
            {name: value for name, value in decoder.state_dict().items() if not name.startswith("lm_head.")},
            assign=shared,
        )
        self.trunk.requires_grad_(not shared)
        self.value_head = nn.Linear(decoder.config.width, 1)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        (self.value_head if shared else self).to(decoder.embed_positions.weight)

    def cross_states(self, text: TextStates) -> CrossStates:
        """Cross-attention keys and values of M captions."""
        return self.trunk.cross_states(text)

    def forward(self, tokens: Tensor, cross: CrossStates, start_token: int | None = None) -> Tensor:
        """Values before each token.

        Args:
            tokens: int64 [N, T].
            cross: states of M captions; N is a multiple of M; images of one caption are adjacent.
            start_token: the token before the first one; by default the model's own.

        Returns:
            float32 [N, T]: `values[:, t]` has seen the caption and the tokens before t.
        """
        hidden = self.trunk(tokens, cross, start_token)
        with torch.autocast(hidden.device.type, enabled=False):
            weight, bias = at_least_float32(self.value_head.weight), at_least_float32(self.value_head.bias)
            return nn.functional.linear(at_least_float32(hidden), weight, bias)[..., 0]
