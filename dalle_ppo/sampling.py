"""The policy: the one function that turns decoder states into the distribution sampled from, and the
cached sampler that draws from it.

Every log-probability in the project comes from `guided_log_pi`. The sampler, the old, new and
reference log-probs, the entropy and the KL all call it, so they speak of the same distribution.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .models.bart import (
    BartDecoder,
    BartEncoder,
    CrossStates,
    SelfAttentionCache,
    TextStates,
    at_least_float32,
)
from .models.policy import PolicySettings
from .rl.records import HiddenStates


@dataclass(frozen=True)
class Prompts:
    """M distinct captions as the decoder reads them, and the unconditional one.

    Args:
        text: the captions' encoder states.
        unconditional: the states of `<s></s>`, one caption; None where guidance is 1.
    """

    text: TextStates
    unconditional: TextStates | None

    def select(self, index: Tensor) -> "Prompts":
        """The captions at `index`, int64 [N]."""
        return Prompts(self.text.select(index), self.unconditional)


@dataclass(frozen=True)
class Samples:
    """Sampled images as tokens.

    Args:
        tokens: int64 [N, T].
        log_probs: of those tokens as the cached sampler computed them, float32 [N, T].
    """

    tokens: Tensor
    log_probs: Tensor


@torch.no_grad()
def encode_prompts(
    encoder: BartEncoder, text_tokens: Tensor, unconditional_tokens: Tensor, settings: PolicySettings
) -> Prompts:
    """Encodes M captions [M, 64] and, where guidance needs it, the unconditional caption [64]."""
    unconditional = encoder(unconditional_tokens[None]) if settings.guided else None
    return Prompts(encoder(text_tokens), unconditional)


def guided_log_pi(
    decoder: BartDecoder, conditional: Tensor, unconditional: Tensor | None, settings: PolicySettings
) -> Tensor:
    """Log-distribution over the drawable codes.

    Args:
        decoder: whose head is applied.
        conditional: hidden states [..., D] given the caption.
        unconditional: hidden states [..., D] given `<s></s>`; None where guidance is 1.
        settings: guidance, temperature and, in generation, top-k.

    Returns:
        float32 [..., V], log-softmax over the support; -inf outside a top-k support.

    Source: docs/algorithm.md; classifier-free guidance on logits, https://arxiv.org/abs/2204.08387
    """
    with torch.autocast(conditional.device.type, enabled=False):
        logits = _guided_logits(decoder, conditional, unconditional, settings) / settings.temperature
        if settings.top_k is not None and settings.top_k < logits.shape[-1]:
            # Ties with the k-th code are kept, as the min-dalle package keeps them.
            lowest = logits.topk(settings.top_k, dim=-1).values[..., -1:]
            logits = logits.masked_fill(logits < lowest, -torch.inf)
        return torch.log_softmax(logits, dim=-1)


def _guided_logits(
    decoder: BartDecoder, conditional: Tensor, unconditional: Tensor | None, settings: PolicySettings
) -> Tensor:
    """`l_u + s (l_c - l_u)`, [..., V].

    The head is linear, so guidance is applied to the hidden states before it: the same logits for half
    the matrix product. Only detaching needs the two apart, for the head is part of both branches.
    """
    hidden = at_least_float32(conditional)
    if not settings.guided:
        return decoder.head(hidden)
    unconditional = at_least_float32(unconditional)
    if settings.detach_unconditional:
        base = decoder.head(unconditional).detach()
        return base + settings.guidance * (decoder.head(hidden) - base)
    return decoder.head(unconditional + settings.guidance * (hidden - unconditional))


def hidden_of_tokens(
    decoder: BartDecoder, tokens: Tensor, prompts: Prompts, settings: PolicySettings
) -> HiddenStates:
    """Teacher forcing: the decoder's states before each of the given tokens.

    Args:
        decoder: actor or reference.
        tokens: int64 [N, T].
        prompts: of M captions; the N / M images of a caption are neighbours.
        settings: of the policy.

    Returns:
        States that `log_pi_of_hidden` turns into the policy; a hundredth of its size.
    """
    conditional = decoder(tokens, decoder.cross_states(prompts.text), settings.start_token)
    unconditional = None
    if settings.guided:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not settings.detach_unconditional):
            cross = decoder.cross_states(prompts.unconditional)
            unconditional = decoder(tokens, cross, settings.start_token)
    return HiddenStates(conditional, unconditional)


def log_pi_of_hidden(decoder: BartDecoder, hidden: HiddenStates, settings: PolicySettings) -> Tensor:
    """The policy's log-distribution, float32 [N, T, V], from states of the same decoder."""
    return guided_log_pi(decoder, hidden.conditional, hidden.unconditional, settings)


def log_pi_of_tokens(
    decoder: BartDecoder, tokens: Tensor, prompts: Prompts, settings: PolicySettings
) -> Tensor:
    """Teacher forcing: the policy's log-distribution before each of the given tokens.

    Args:
        decoder: actor or reference.
        tokens: int64 [N, T].
        prompts: of M captions; the N / M images of a caption are neighbours.
        settings: of the policy.

    Returns:
        float32 [N, T, V]. Differentiable, through both branches unless `detach_unconditional`.
    """
    return log_pi_of_hidden(decoder, hidden_of_tokens(decoder, tokens, prompts, settings), settings)


def gather_log_probs(log_pi: Tensor, tokens: Tensor) -> Tensor:
    """Log-probs of `tokens` [N, T] under `log_pi` [N, T, V]; float32 [N, T]."""
    return log_pi.gather(-1, tokens[..., None])[..., 0]


def noise_keys(
    seed: int, stream: str, iteration: int, caption_ids: Sequence[str], samples: Sequence[int]
) -> Tensor:
    """Keys of the sampling noise, one an image.

    The noise of an image depends on these five things, the position and the code alone; not on which
    images share its batch, nor on the device.

    Args:
        seed: the run's.
        stream: "rollout", "evaluation" or "generate": streams never share noise.
        iteration: of training; 0 elsewhere.
        caption_ids: of each image's caption, N of them.
        samples: index of each image among its caption's.

    Returns:
        int32 [N, 2].
    """
    words = [
        hashlib.blake2b(f"{seed}|{stream}|{iteration}|{caption}|{sample}".encode(), digest_size=8).digest()
        for caption, sample in zip(caption_ids, samples, strict=True)
    ]
    return torch.from_numpy(np.frombuffer(b"".join(words), dtype=np.int32).reshape(-1, 2).copy())


def _mix(x: Tensor) -> Tensor:
    """A bijection of 32-bit words that spreads every bit over all others; in place.

    Source: "lowbias32", https://github.com/skeeto/hash-prospector
    """
    # int32 shifts are arithmetic: the mask takes the copies of the sign bit away.
    x ^= (x >> 16) & 0xFFFF
    x *= 0x21F0AAAD
    x ^= (x >> 15) & 0x1FFFF
    x *= 0x735A2D97
    x ^= (x >> 15) & 0x1FFFF
    return x


def gumbel_noise(keys: Tensor, position: int, num_codes: int) -> Tensor:
    """Standard Gumbel noise of one position, a pure function of its arguments.

    Args:
        keys: int32 [N, 2], of `noise_keys`.
        position: of the token, 0 .. T - 1.
        num_codes: V.

    Returns:
        float32 [N, V].
    """
    codes = torch.arange(num_codes, dtype=torch.int32, device=keys.device)
    place = torch.full((1,), position * 0x632B + 0x1234567, dtype=torch.int32, device=keys.device)
    x = _mix(codes[None] * 0x3C6EF35 + _mix(keys[:, :1] + _mix(place)))
    x = _mix(x + keys[:, 1:])
    uniform = (((x >> 9) & 0x7FFFFF).float() + 0.5) * 2.0**-23
    return -torch.log(-torch.log(uniform))


@torch.no_grad()
def sample(decoder: BartDecoder, prompts: Prompts, keys: Tensor, settings: PolicySettings) -> Samples:
    """Draws images, token by token, with cached keys and values.

    Args:
        decoder: the policy's.
        prompts: M captions; the unconditional branch is computed once for all.
        keys: int32 [N, 2], the noise of each image; images of one caption are neighbours, so image i
            belongs to caption `i // (N / M)`.
        settings: of the policy.

    Returns:
        Tokens and their log-probs.
    """
    branches = [decoder.cross_states(prompts.text)]
    if settings.guided:
        branches.append(decoder.cross_states(prompts.unconditional))
    num_images, num_tokens = len(keys), decoder.config.num_image_tokens
    if num_images % branches[0].num_captions:
        raise ValueError(
            f"{num_images} images do not divide among {branches[0].num_captions} captions; "
            "draw the same number for each"
        )
    start = decoder.config.start_token if settings.start_token is None else settings.start_token
    current = torch.full((num_images,), start, device=keys.device)
    tokens = torch.empty((num_images, num_tokens), dtype=torch.long, device=keys.device)
    log_probs = torch.empty((num_images, num_tokens), device=keys.device)
    caches = decoder.new_cache(num_images, len(branches))
    for position in range(num_tokens):
        current, chosen = _sample_step(decoder, current, position, caches, branches, keys, settings)
        tokens[:, position] = current
        log_probs[:, position] = chosen
    return Samples(tokens, log_probs)


def _sample_step(
    decoder: BartDecoder,
    current: Tensor,
    position: int,
    caches: list[SelfAttentionCache],
    branches: list[CrossStates],
    keys: Tensor,
    settings: PolicySettings,
) -> tuple[Tensor, Tensor]:
    """The next token of every image and its log-prob, each [N]: the Gumbel maximum is a draw from pi."""
    hidden = decoder.step(current, position, caches, branches)
    log_pi = guided_log_pi(decoder, hidden[0], hidden[1] if settings.guided else None, settings)
    tokens = (log_pi + gumbel_noise(keys, position, log_pi.shape[-1])).argmax(dim=-1)
    return tokens, log_pi.gather(-1, tokens[:, None])[:, 0]
