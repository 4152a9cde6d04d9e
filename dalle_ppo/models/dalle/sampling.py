"""The policy: the one function that turns decoder states into the distribution sampled from, and the
cached sampler that draws from it.

Every log-probability in the project comes from `guided_log_pi`. The sampler, the old, new and
reference log-probs, the entropy and the KL all call it, so they refer to the same distribution; training with
top-k renormalises it on the stored set of codes (`rl.log_pi.log_pi_on`), in all of these. Only the sampler on
a GPU has a kernel of its own, `kernels.draw_codes`, which a test compares with it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
from torch import Tensor

from dalle_ppo.models.adapters import is_adapted
from dalle_ppo.models.dalle.bart import BartDecoder, BartEncoder, CrossStates, TextStates, at_least_float32
from dalle_ppo.models.dalle.triton_works import triton_works
from dalle_ppo.models.policy_settings import PolicySettings
from dalle_ppo.rl.log_pi import kept_codes, log_pi_of_logits, log_pi_on
from dalle_ppo.rl.noise import gumbel_noise


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
class Keep:
    """What sampling returns besides tokens and their log-probs.

    Args:
        hidden: the states, from which `log_pi_of_hidden` computes the distributions that the tokens were
            drawn from without scoring them. Kernels on a GPU round differently and return none.
        codes: with top-k, draw from exactly `top_k` codes and return them, as training needs; else codes that
            tie with the last one are kept too. The kernel that draws codes on a GPU does not return them, so
            a GPU then steps as a CPU does.
    """

    hidden: bool = False
    codes: bool = False


NOTHING = Keep()


@dataclass(frozen=True)
class Samples:
    """Sampled images as tokens.

    Args:
        tokens: int64 [N, T].
        log_probs: their log-probs as the cached sampler computed them, float32 [N, T].
        hidden: the states that they were drawn from; None unless asked for.
        kept: the codes that each was drawn from, int16 [N, T, k]; None unless asked for.
    """

    tokens: Tensor
    log_probs: Tensor
    hidden: "HiddenStates | None" = None
    kept: Tensor | None = None


@dataclass(frozen=True)
class HiddenStates:
    """The states that a decoder's head is applied to, before each token of N images.

    Args:
        conditional: given the caption, [N, T, D].
        unconditional: given `<s></s>`, [N, T, D]; None where guidance is 1.
    """

    conditional: Tensor
    unconditional: Tensor | None

    def select(self, index: Tensor) -> "HiddenStates":
        """The images at `index`, int64 [b]."""
        unconditional = None if self.unconditional is None else self.unconditional[index]
        return HiddenStates(self.conditional[index], unconditional)

    @classmethod
    def cat(cls, parts: "list[HiddenStates]") -> "HiddenStates":
        """The images of all parts, in order."""
        unconditional = None
        if parts[0].unconditional is not None:
            unconditional = torch.cat([part.unconditional for part in parts])
        return cls(torch.cat([part.conditional for part in parts]), unconditional)


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
        decoder: provides the head.
        conditional: hidden states [..., D] given the caption.
        unconditional: hidden states [..., D] given `<s></s>`; None where guidance is 1.
        settings: guidance, temperature and, in generation, top-k.

    Returns:
        float32 [..., V], log-softmax over the support; -inf outside a top-k support.

    Source: docs/algorithm.md; classifier-free guidance on logits, https://arxiv.org/abs/2203.13131
    """
    with torch.autocast(conditional.device.type, enabled=False):
        logits = _guided_logits(decoder, conditional, unconditional, settings)
        return log_pi_of_logits(logits, settings.temperature, settings.top_k)


def _guided_logits(
    decoder: BartDecoder, conditional: Tensor, unconditional: Tensor | None, settings: PolicySettings
) -> Tensor:
    """`l_u + s (l_c - l_u)`, [..., V].

    The head is linear, so guidance is applied to the hidden states before it: the same logits for half
    the matrix product. Only detaching needs the two separate, because the head is part of both branches.
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
        prompts: M captions; the N / M images of a caption are adjacent.
        settings: the policy's settings.

    Returns:
        States that `log_pi_of_hidden` turns into the log-distribution, at a hundredth of its size.
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
        prompts: M captions; the N / M images of a caption are adjacent.
        settings: the policy's settings.

    Returns:
        float32 [N, T, V]. Differentiable, through both branches unless `detach_unconditional`.
    """
    return log_pi_of_hidden(decoder, hidden_of_tokens(decoder, tokens, prompts, settings), settings)


@torch.no_grad()
def sample(
    decoder: BartDecoder, prompts: Prompts, keys: Tensor, settings: PolicySettings, keep: Keep = NOTHING
) -> Samples:
    """Draws images, token by token, with cached keys and values.

    Args:
        decoder: the policy's.
        prompts: M captions; the unconditional branch is computed once for all.
        keys: int32 [N, 2], the noise of each image; images of one caption are adjacent, so image i
            belongs to caption `i // (N / M)`.
        settings: the policy's settings.
        keep: what to return besides.

    Returns:
        Tokens, their log-probs and, if asked for, the codes they were drawn from.
    """
    branches = [decoder.cross_states(prompts.text)]
    if settings.guided:
        branches.append(decoder.cross_states(prompts.unconditional))
    return sample_branches(decoder, branches, keys, settings, keep)


@torch.no_grad()
def sample_branches(
    decoder: BartDecoder,
    branches: list[CrossStates],
    keys: Tensor,
    settings: PolicySettings,
    keep: Keep = NOTHING,
) -> Samples:
    """`sample`, with cross-attention keys and values that are already computed.

    Args:
        decoder: the policy's.
        branches: one for the M captions and, with guidance, one for the unconditional caption.
        keys: int32 [N, 2], as in `sample`.
        settings: the policy's settings.
        keep: what to return besides.

    Returns:
        Tokens, their log-probs and, if asked for, the codes they were drawn from.
    """
    if is_adapted(decoder):
        raise TypeError("products that read weights directly miss adapters; draw with `sampler_weights`")
    num_images, num_tokens = len(keys), decoder.config.num_image_tokens
    if num_images % branches[0].num_captions:
        raise ValueError(
            f"{num_images} images do not divide among {branches[0].num_captions} captions; "
            "draw the same number for each"
        )
    store_kept = keep.codes and settings.top_k is not None
    if runs_as_kernels(keys.device, decoder) and not store_kept:
        from dalle_ppo.models.dalle.gpu_step import GpuStep

        with torch.cuda.device(keys.device):
            step = GpuStep(decoder, branches, num_images)
            drawing = _Drawing(decoder, step, keys, settings, as_kernels=True)
            draw_replayed(drawing, cuda_graph)
    else:
        caches = decoder.new_cache(num_images, len(branches))
        step = partial(decoder.step, caches=caches, branches=branches)
        drawing = _Drawing(decoder, step, keys, settings, store_kept=store_kept)
        if keep.hidden:
            shape = len(branches), num_images, num_tokens, decoder.config.width
            drawing.hidden = decoder.embed_positions.weight.new_empty(shape)
        for _ in range(num_tokens):
            drawing.advance()
    hidden = None
    if drawing.hidden is not None:
        hidden = HiddenStates(drawing.hidden[0], drawing.hidden[1] if settings.guided else None)
    return Samples(drawing.tokens, drawing.log_probs, hidden, drawing.kept)


def runs_as_kernels(device: torch.device, decoder: BartDecoder) -> bool:
    """Whether a step runs as `kernels`: on CUDA, in float32 or narrower, where Triton works."""
    narrow = decoder.embed_positions.weight.dtype.itemsize <= 4
    return device.type == "cuda" and narrow and triton_works()


class _Drawing:
    """What one call of `sample` reads and writes. All of it stays in place, as a CUDA graph requires."""

    def __init__(
        self,
        decoder: BartDecoder,
        step: Callable[[Tensor, Tensor], Tensor],
        keys: Tensor,
        settings: PolicySettings,
        as_kernels: bool = False,
        store_kept: bool = False,
    ):
        start = decoder.config.start_token if settings.start_token is None else settings.start_token
        shape, device = (len(keys), decoder.config.num_image_tokens), keys.device
        self.decoder, self.step, self.keys, self.settings = decoder, step, keys, settings
        self.as_kernels = as_kernels
        self.hidden: Tensor | None = None
        self.position = torch.zeros(1, dtype=torch.long, device=device)
        self.current = torch.full((len(keys),), start, device=device)
        self.tokens = torch.empty(shape, dtype=torch.long, device=device)
        self.log_probs = torch.empty(shape, device=device)
        self.kept = None
        if store_kept:
            size = min(settings.top_k, decoder.config.num_codes)
            self.kept = torch.empty(*shape, size, dtype=torch.int16, device=device)

    def advance(self) -> None:
        """Draws the next token of every image."""
        hidden = self.step(self.current, self.position)
        if self.hidden is not None:
            self.hidden.index_copy_(2, self.position, hidden[:, :, None])
        draw = self._draw_by_kernel if self.as_kernels else self._draw
        if self.kept is not None:
            draw = self._draw_from_kept
        draw(hidden[0], hidden[1] if self.settings.guided else None)
        self.position += 1

    def _draw(self, conditional: Tensor, unconditional: Tensor | None) -> None:
        """The Gumbel maximum is a draw from pi."""
        log_pi = guided_log_pi(self.decoder, conditional, unconditional, self.settings)
        noise = gumbel_noise(self.keys, self.position, log_pi.shape[-1])
        drawn = (log_pi + noise).argmax(dim=-1, keepdim=True)
        self._write(drawn, log_pi.gather(-1, drawn))

    def _draw_from_kept(self, conditional: Tensor, unconditional: Tensor | None) -> None:
        """`_draw` from exactly k codes, with the same noise for each code."""
        every = guided_log_pi(self.decoder, conditional, unconditional, replace(self.settings, top_k=None))
        kept = kept_codes(every, self.settings.top_k)
        log_pi, codes = log_pi_on(every, kept), kept.long()
        noise = gumbel_noise(self.keys, self.position, every.shape[-1]).gather(-1, codes)
        place = (log_pi + noise).argmax(dim=-1, keepdim=True)
        self._write(codes.gather(-1, place), log_pi.gather(-1, place))
        self.kept.index_copy_(1, self.position, kept[:, None])

    def _write(self, drawn: Tensor, log_probs: Tensor) -> None:
        self.current.copy_(drawn[:, 0])
        self.tokens.index_copy_(1, self.position, drawn)
        self.log_probs.index_copy_(1, self.position, log_probs.to(self.log_probs.dtype))

    def _draw_by_kernel(self, conditional: Tensor, unconditional: Tensor | None) -> None:
        from dalle_ppo.models.dalle import kernels

        with torch.autocast(conditional.device.type, enabled=False):
            logits = _guided_logits(self.decoder, conditional, unconditional, self.settings)
        kernels.draw_codes(
            logits,
            self.keys,
            self.position,
            self.settings.temperature,
            self.settings.top_k,
            self.current,
            self.tokens,
            self.log_probs,
        )


def draw_replayed(drawing: _Drawing, record: Callable[[Callable[[], None]], Callable[[], None]]) -> None:
    """Draws all tokens by replaying a recorded step.

    The recording lives for this call only: it costs as much as drawing a few tokens and outlives no weights.

    Args:
        drawing: filled in place.
        record: records a step without running it, and returns a function that runs it.
    """
    drawing.advance()  # kernels are compiled at their first call, which a recording does not allow
    replay = record(drawing.advance)
    for _ in range(1, drawing.tokens.shape[1]):
        replay()
    if drawing.tokens.is_cuda:
        torch.cuda.current_stream(drawing.tokens.device).synchronize()  # the recording is in use until then


def cuda_graph(step: Callable[[], None]) -> Callable[[], None]:
    """Records a step, on the current device, as a CUDA graph: one launch runs its hundreds of kernels."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=recording_stream(torch.cuda.current_device())):
        step()
    return graph.replay


@cache
def recording_stream(device: int) -> torch.cuda.Stream:
    """One stream for all recordings on a device: libraries keep memory for each stream they have used."""
    return torch.cuda.Stream(device)
