"""The DALL·E encoder-decoder: one implementation for the built-in world, mini and Mega.

Parameter names are those of the `min-dalle` package, so its weight files load unchanged.
There is no dropout in any module here: a forward pass is a function of weights and tokens.

Source: https://github.com/kuprel/min-dalle/tree/main/min_dalle/models
Differs: cross-attention keys and values are computed once per caption and shared by its images,
    captions are read only up to the longest of a batch, and attention is torch's fused kernel.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle_ppo.models.dalle.caches import GrowingCache
from dalle_ppo.models.dalle.checkpointing import run_layers
from dalle_ppo.models.dalle.linear import Linear, PackedLinear, is_large, linear, onednn_product
from dalle_ppo.models.dalle.presets import BartConfig

PAD_TOKEN = 1
# The products of one sampler step in a decoder layer; keys and values of captions are already computed.
STEP_PRODUCTS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.out_proj",
    "encoder_attn.q_proj",
    "encoder_attn.out_proj",
    "glu.fc0",
    "glu.fc1",
    "glu.fc2",
)


class GLU(nn.Module):
    """Gated feed-forward block with a norm inside."""

    def __init__(self, width: int, glu_width: int):
        super().__init__()
        self.ln0 = nn.LayerNorm(width)
        self.ln1 = nn.LayerNorm(glu_width)
        self.fc0 = Linear(width, glu_width)
        self.fc1 = Linear(width, glu_width)
        self.fc2 = Linear(glu_width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.ln0(x)
        return self.fc2(self.ln1(F.gelu(self.fc0(x)) * self.fc1(x)))


class Attention(nn.Module):
    """Projections of one attention block; callers choose keys, values and mask."""

    def __init__(self, num_heads: int, width: int):
        super().__init__()
        self.num_heads = num_heads
        self.k_proj = Linear(width, width)
        self.v_proj = Linear(width, width)
        self.q_proj = Linear(width, width)
        self.out_proj = Linear(width, width)

    def split_heads(self, x: Tensor) -> Tensor:
        """[N, S, D] -> [N, H, S, D / H]."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of `x` [N, S, D], each [N, H, S, D / H]."""
        return self.split_heads(self.k_proj(x)), self.split_heads(self.v_proj(x))

    def attend(
        self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Attention of queries from `x` [N, S, D] over `keys` and `values`; returns [N, S, D]."""
        queries = self.split_heads(self.q_proj(x))
        if x.device.type == "cpu":
            # Under autocast: bfloat16 attention has a slow backward pass on CPUs, bfloat16 products do not.
            with torch.autocast("cpu", enabled=False):
                heads = (part.to(x.dtype) for part in (queries, keys, values))
                out = F.scaled_dot_product_attention(*heads, attn_mask=mask, is_causal=is_causal)
        else:
            out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, is_causal=is_causal)
        return self.out_proj(out.transpose(1, 2).flatten(2))

    def read(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attention of the few queries of one sampler step, before `out_proj`.

        Args:
            queries: output of `q_proj`, [N, S, D].
            keys: [N, H, T, D / H].
            values: [N, H, T, D / H].
            mask: True where there is something to read; broadcasts to [N, H, S, T].

        Returns:
            [N, S, D].
        """
        attend = attend_by_products if queries.device.type == "cpu" else F.scaled_dot_product_attention
        return attend(self.split_heads(queries), keys, values, mask).transpose(1, 2).flatten(2)


def attend_by_products(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """`F.scaled_dot_product_attention`, but faster on CPUs for few queries.

    Fastest for one query without a mask: then keys are the left factor, and so are values where
    `GrowingCache` has laid them out for it.
    """
    queries = queries * queries.shape[-1] ** -0.5
    one = mask is None and queries.shape[2] == 1
    scores = (keys @ queries.transpose(2, 3)).transpose(2, 3) if one else queries @ keys.transpose(2, 3)
    if mask is not None:
        scores.masked_fill_(~mask, -torch.inf)
    weights = scores.softmax(dim=-1)
    if one and values.stride(2) == 1:
        return (values.transpose(2, 3) @ weights.transpose(2, 3)).transpose(2, 3)
    return weights @ values


@dataclass(frozen=True)
class TextStates:
    """What the decoder sees of M captions.

    Args:
        states: encoder output, [M, S, D].
        mask: True where there is text, bool [M, S].
    """

    states: Tensor
    mask: Tensor

    def select(self, index: Tensor) -> "TextStates":
        """The captions at `index`, int64 [N]; trimmed to the longest of them."""
        mask = self.mask[index]
        length = int(mask.sum(dim=1).max())
        return TextStates(self.states[index, :length], mask[:, :length])


@dataclass(frozen=True)
class CrossStates:
    """Cross-attention keys and values of M captions, one pair per decoder layer, and the text mask.

    Images of one caption are adjacent: N images and M captions mean N / M images each. The images
    of a caption attend together, as one long sequence of queries, so nothing is copied per image.
    """

    keys_values: tuple[tuple[Tensor, Tensor], ...]
    mask: Tensor  # bool [M, 1, 1, S]

    @property
    def num_captions(self) -> int:
        return self.mask.shape[0]


class EncoderLayer(nn.Module):
    def __init__(self, config: BartConfig):
        super().__init__()
        self.pre_self_attn_layer_norm = nn.LayerNorm(config.width)
        self.self_attn = Attention(config.num_heads, config.width)
        self.self_attn_layer_norm = nn.LayerNorm(config.width)
        self.glu = GLU(config.width, config.glu_width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = self.pre_self_attn_layer_norm(x)
        keys, values = self.self_attn.keys_values(h)
        x = x + self.self_attn_layer_norm(self.self_attn.attend(h, keys, values, mask))
        return x + self.glu(x)


class BartEncoder(nn.Module):
    """Text encoder."""

    def __init__(self, config: BartConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.text_vocab_count, config.width)
        self.embed_positions = nn.Embedding(config.num_text_tokens, config.width)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.layernorm_embedding = nn.LayerNorm(config.width)
        self.final_ln = nn.LayerNorm(config.width)

    def forward(self, text_tokens: Tensor) -> TextStates:
        """Encodes captions.

        Args:
            text_tokens: int64 [M, 64], padded with `PAD_TOKEN`.

        Returns:
            Their states, cut after the longest caption: padding is masked anyway.
        """
        length = int((text_tokens != PAD_TOKEN).sum(dim=1).max())
        text_tokens = text_tokens[:, :length]
        mask = text_tokens != PAD_TOKEN
        x = self.embed_tokens(text_tokens) + self.embed_positions.weight[:length]
        x = self.layernorm_embedding(x)
        for layer in self.layers:
            x = layer(x, mask[:, None, None, :])
        return TextStates(self.final_ln(x), mask)


class DecoderLayer(nn.Module):
    def __init__(self, config: BartConfig):
        super().__init__()
        self.pre_self_attn_layer_norm = nn.LayerNorm(config.width)
        self.self_attn = Attention(config.num_heads, config.width)
        self.self_attn_layer_norm = nn.LayerNorm(config.width)
        self.pre_encoder_attn_layer_norm = nn.LayerNorm(config.width)
        self.encoder_attn = Attention(config.num_heads, config.width)
        self.encoder_attn_layer_norm = nn.LayerNorm(config.width)
        self.glu = GLU(config.width, config.glu_width)

    def attend_text(self, x: Tensor, keys_values: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        """Residual cross-attention of images [N, t, D]; the N / M images of a caption form one query."""
        h = self.pre_encoder_attn_layer_norm(x).reshape(mask.shape[0], -1, x.shape[-1])
        return x + self.encoder_attn_layer_norm(
            self.encoder_attn.attend(h, *keys_values, mask).reshape(x.shape)
        )

    def forward(self, x: Tensor, keys_values: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        """Runs whole sequences [N, T, D] with causal attention."""
        h = self.pre_self_attn_layer_norm(x)
        keys, values = self.self_attn.keys_values(h)
        x = x + self.self_attn_layer_norm(self.self_attn.attend(h, keys, values, is_causal=True))
        x = self.attend_text(x, keys_values, mask)
        return x + self.glu(x)

    def attend_cache(self, x: Tensor, cache: GrowingCache, position: Tensor) -> Tensor:
        """Residual self-attention of one new token [N, 1, D]; its key and value go into the cache."""
        h = self.pre_self_attn_layer_norm(x)
        attn, seen = self.self_attn, cache.write(*self.self_attn.keys_values(h), position)
        return x + self.self_attn_layer_norm(attn.out_proj(attn.read(attn.q_proj(h), *seen)))

    def attend_branches(self, x: Tensor, branches: list[CrossStates], layer: int) -> Tensor:
        """Residual cross-attention of one new token in all branches together, so weights are read once.

        Args:
            x: [B N, 1, D]; in the first layer [N, 1, D], as the B branches diverge here.
            branches: what each attends to.
            layer: which one this is, from 0.

        Returns:
            [B N, 1, D].
        """
        attn, width, num_branches = self.encoder_attn, x.shape[-1], len(branches)
        queries = attn.q_proj(self.pre_encoder_attn_layer_norm(x))
        parts = queries.chunk(num_branches) if layer > 0 else [queries] * num_branches
        read = [
            attn.read(
                part.reshape(branch.num_captions, -1, width), *branch.keys_values[layer], branch.mask
            ).reshape(part.shape)
            for part, branch in zip(parts, branches, strict=True)
        ]
        x = x if layer > 0 else x.repeat(num_branches, 1, 1)
        return x + self.encoder_attn_layer_norm(attn.out_proj(torch.cat(read)))


class BartDecoder(nn.Module):
    """Image-token decoder: everything up to the final norm, and the head over the codes.

    Args:
        config: sizes.
        with_head: False for a critic's trunk, which has no head over the codes.
    """

    checkpointing = False  # see `set_checkpointing`

    def __init__(self, config: BartConfig, with_head: bool = True):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.image_vocab_count + 1, config.width)
        self.embed_positions = nn.Embedding(config.num_image_tokens, config.width)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_layers))
        self.layernorm_embedding = nn.LayerNorm(config.width)
        self.final_ln = nn.LayerNorm(config.width)
        if with_head:
            self.lm_head = Linear(config.width, config.image_vocab_count + 1)

    def cross_states(self, text: TextStates) -> CrossStates:
        """Cross-attention keys and values of M captions, computed once and laid out for reading."""
        keys_values, states = [], text.states.to(self.embed_positions.weight.dtype)
        for layer in self.layers:
            keys, values = layer.encoder_attn.keys_values(states)
            keys_values.append((keys.contiguous(), values.contiguous()))
        return CrossStates(tuple(keys_values), text.mask[:, None, None, :])

    def forward(self, tokens: Tensor, cross: CrossStates, start_token: int | None = None) -> Tensor:
        """Hidden states of whole sequences, by teacher forcing.

        Args:
            tokens: int64 [N, T]; images of one caption are adjacent.
            cross: states of M captions; N is a multiple of M.
            start_token: the token before the first one; by default the model's own.

        Returns:
            [N, T, D]: position t has seen the tokens before t. `head` turns it into logits.
        """
        start = self.config.start_token if start_token is None else start_token
        inputs = F.pad(tokens[:, :-1], (1, 0), value=start)
        x = self.embed_tokens(inputs) + self.embed_positions.weight[: inputs.shape[1]]
        x = self.layernorm_embedding(x)
        x = run_layers(self.layers, x, cross.keys_values, cross.mask, self.checkpointing)
        return self.final_ln(x)

    def new_cache(self, num_images: int, num_branches: int) -> list[GrowingCache]:
        """Empty self-attention caches, one per layer.

        The branches of an image diverge at the first cross-attention. The first layer's self-attention comes
        before it, so its cache is shared.
        """
        c, like = self.config, self.embed_positions.weight
        rows = [num_images] + [num_branches * num_images] * (c.num_layers - 1)
        return [GrowingCache(num, c, like) for num in rows]

    def step(
        self, tokens: Tensor, position: Tensor, caches: list[GrowingCache], branches: list[CrossStates]
    ) -> Tensor:
        """One cached step of all branches together.

        Args:
            tokens: the token before `position`, int64 [N].
            position: 0 .. T - 1, int64 [1].
            caches: from `new_cache(N, len(branches))`, written in place.
            branches: one entry without guidance, conditional and unconditional with it. All branches
                read the same tokens and differ in the caption they attend to.

        Returns:
            Hidden states [len(branches), N, D].
        """
        x = self.embed_tokens(tokens) + self.embed_positions.weight[position]
        x = self.layernorm_embedding(x)[:, None]
        for i, (layer, cache) in enumerate(zip(self.layers, caches, strict=True)):
            x = layer.attend_cache(x, cache, position)
            x = layer.attend_branches(x, branches, i)
            x = x + layer.glu(x)
        return self.final_ln(x).view(len(branches), -1, x.shape[-1])

    def head(self, hidden: Tensor) -> Tensor:
        """Logits of the drawable codes [..., V], in float32 even if the weights are narrower.

        An autocast around the call still narrows the product, unless the decoder is packed;
        `sampling.guided_log_pi` switches it off.
        """
        hidden = at_least_float32(hidden)
        if isinstance(self.lm_head, PackedLinear):
            return onednn_product(hidden, self.lm_head.packed)
        return linear(hidden, at_least_float32(self.lm_head.weight[: self.config.num_codes]))

    def pack(self, num_rows: int) -> None:
        """Repacks the large weights of `step` and `head` in place, for draws on a CPU.

        From then on the decoder only draws; it has no weights to save or train.

        Args:
            num_rows: rows per step, images times branches. Any number works, but this one is fastest.
        """
        for layer in self.layers:
            for name in STEP_PRODUCTS:
                part = layer.get_submodule(name)
                if isinstance(part, Linear) and is_large(part.weight):
                    layer.set_submodule(name, PackedLinear(part.weight, num_rows))
        if isinstance(self.lm_head, Linear) and is_large(self.lm_head.weight):
            self.lm_head = PackedLinear(self.lm_head.weight[: self.config.num_codes], num_rows)


def frozen_decoder(config: BartConfig, weights: dict[str, Tensor]) -> BartDecoder:
    """A frozen decoder that uses the given weights without copying them."""
    with torch.device("meta"):
        decoder = BartDecoder(config)
    decoder.load_state_dict(weights, strict=True, assign=True)
    return decoder.eval().requires_grad_(False)


def at_least_float32(x: Tensor) -> Tensor:
    """Converts half precision to float32; leaves float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def init_bart(module: nn.Module, std: float = 0.02) -> None:
    """Initialises linear and embedding weights from N(0, std), as BART does; norms stay 1 and 0.

    Differs: text positions start as sinusoids. From random ones a small encoder takes very long to learn
    which words are adjacent, and so which colour belongs to which icon.
    """
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Embedding)):
            nn.init.normal_(part.weight, std=std)
    if isinstance(module, BartEncoder):
        with torch.no_grad():
            module.embed_positions.weight.copy_(
                std * 2**0.5 * sinusoids(*module.embed_positions.weight.shape)
            )


def sinusoids(num_positions: int, width: int) -> Tensor:
    """Sine and cosine of positions at geometrically falling frequencies, float32 [num_positions, width].

    Source: https://arxiv.org/abs/1706.03762, section 3.5.
    """
    frequencies = 10_000.0 ** -(torch.arange(0, width, 2) / width)
    angles = torch.arange(num_positions)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)
