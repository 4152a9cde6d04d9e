"""One step of the sampler on a GPU: what `BartDecoder.step` computes, in far fewer kernels.

Differs: the residual stream is float32 where weights are narrower.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dalle_ppo.models.dalle import kernels
from dalle_ppo.models.dalle.bart import BartDecoder, CrossStates


class GpuStep:
    """A decoder, laid out for one draw, with its caches.

    Nothing it computes depends on a value that the host would have to know, so one CUDA graph serves all
    positions.

    Args:
        decoder: the policy's; float32 or narrower.
        branches: one for M captions and, with guidance, one for the unconditional caption.
        num_images: N, a multiple of M.
    """

    def __init__(self, decoder: BartDecoder, branches: list[CrossStates], num_images: int):
        config, like, num_branches = decoder.config, decoder.embed_positions.weight, len(branches)
        self.decoder, self.num_branches, self.num_images = decoder, num_branches, num_images
        attentions = [layer.self_attn for layer in decoder.layers]
        self.projections = [
            torch.cat([attn.q_proj.weight, attn.k_proj.weight, attn.v_proj.weight]) for attn in attentions
        ]
        self.gates = [torch.cat([layer.glu.fc0.weight, layer.glu.fc1.weight]) for layer in decoder.layers]
        # The branches of an image diverge at the first cross-attention, after the first layer's cache.
        num_rows = [num_images] + [num_branches * num_images] * (config.num_layers - 1)
        shape = config.num_heads, config.num_image_tokens, config.width // config.num_heads
        self.caches = [(like.new_empty(rows, *shape), like.new_empty(rows, *shape)) for rows in num_rows]
        self.rows = torch.arange(num_branches * num_images, dtype=torch.int32, device=like.device)
        self.cached = torch.zeros_like(self.rows)  # tokens in each row's cache
        self.captions = [
            _side_by_side([b.keys_values[i] for b in branches]) for i in range(config.num_layers)
        ]
        self.text_lengths = torch.cat([b.mask[:, 0, 0].sum(dim=1, dtype=torch.int32) for b in branches])
        self.owners = _owners([b.num_captions for b in branches], num_images, like.device)

    def __call__(self, tokens: Tensor, position: Tensor) -> Tensor:
        """Hidden states [B, N, D].

        Args:
            tokens: the token before `position`, int64 [N].
            position: 0 .. T - 1, int64 [1], one more at each call.
        """
        decoder = self.decoder
        self.cached.copy_(position.expand(len(self.cached)))
        h = decoder.embed_tokens(tokens) + decoder.embed_positions.weight[position]
        norms = [layer.pre_self_attn_layer_norm for layer in decoder.layers[1:]] + [decoder.final_ln]
        x, h = kernels.add_and_norm(
            None, h, decoder.layernorm_embedding, decoder.layers[0].pre_self_attn_layer_norm
        )
        for i, next_norm in enumerate(norms):
            x, h = self._layer(i, x, h, next_norm)
        return h.view(self.num_branches, self.num_images, -1)

    def _layer(self, i: int, x: Tensor, h: Tensor, next_norm: torch.nn.LayerNorm) -> tuple[Tensor, Tensor]:
        """Layer i on the residual stream x and its norm h; `BartDecoder.step` has it in plain torch."""
        layer, num = self.decoder.layers[i], len(x)
        projected = F.linear(h, self.projections[i])
        read = kernels.attend_cache(projected, *self.caches[i], self.rows[:num], self.cached[:num])
        h = F.linear(read, layer.self_attn.out_proj.weight)
        x, h = kernels.add_and_norm(x, h, layer.self_attn_layer_norm, layer.pre_encoder_attn_layer_norm)
        queries = F.linear(h, layer.encoder_attn.q_proj.weight)
        read = kernels.attend_text(queries, *self.captions[i], self.owners, self.text_lengths)
        h = F.linear(read, layer.encoder_attn.out_proj.weight)
        x, h = kernels.add_and_norm(x, h, layer.encoder_attn_layer_norm, layer.glu.ln0)
        h = kernels.gated_norm(F.linear(h, self.gates[i]), layer.glu.ln1)
        return kernels.add_and_norm(x, F.linear(h, layer.glu.fc2.weight), None, next_norm)


def _side_by_side(keys_values: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Keys and values of several branches, each [M, H, S, D / H], as those of one, padded to the longest."""
    longest = max(keys.shape[2] for keys, _ in keys_values)
    padded = [[F.pad(part, (0, 0, 0, longest - part.shape[2])) for part in pair] for pair in keys_values]
    keys, values = (torch.cat(parts) for parts in zip(*padded, strict=True))
    return keys, values


def _owners(num_captions: list[int], num_images: int, device: torch.device) -> Tensor:
    """Which caption each row reads, int32 [B N]: the N images of a branch divide among its captions."""
    owners, first = [], 0
    for count in num_captions:
        owners.append(
            first + torch.arange(num_images, dtype=torch.int32, device=device) // (num_images // count)
        )
        first += count
    return torch.cat(owners)
