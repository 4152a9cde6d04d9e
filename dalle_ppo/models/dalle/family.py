"""DALL·E mini and Mega as a policy family: BART draws image tokens, the VQGAN decodes them."""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from dalle_ppo.models.adapters import is_adapted, merged_weights
from dalle_ppo.models.dalle.adapted import is_narrow, whole_decoder
from dalle_ppo.models.dalle.bart import BartDecoder, BartEncoder, frozen_decoder
from dalle_ppo.models.dalle.chunks import chunk_tokens, chunked_scores
from dalle_ppo.models.dalle.critic import Critic
from dalle_ppo.models.dalle.linear import FEW_ROWS
from dalle_ppo.models.dalle.memory_plan import MemoryPlan, plan_memory
from dalle_ppo.models.dalle.sampling import (
    NOTHING,
    HiddenStates,
    Keep,
    Prompts,
    Samples,
    encode_prompts,
    hidden_of_tokens,
    log_pi_of_hidden,
    sample,
    sample_branches,
)
from dalle_ppo.models.dalle.sharded import gathered_decoder
from dalle_ppo.models.dalle.tokenizer import TextTokenizer
from dalle_ppo.models.dalle.vqgan import VqganDecoder
from dalle_ppo.models.family import Drawing, LogPiFunction, TokenScores, token_scores
from dalle_ppo.models.policy_settings import PolicySettings
from dalle_ppo.models.precision import autocast
from dalle_ppo.models.sharding import is_sharded, most_of
from dalle_ppo.rl.log_pi import kept_codes
from dalle_ppo.rl.records import Experience

TRAINABLE = {
    "cross_keys_values": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "cross_attention": ("encoder_attn",),
    "all": ("",),
}
"""Parts of the decoder's parameter names that each value of `actor.trainable` includes."""


@dataclass(frozen=True)
class FrozenParts:
    """The parts that actor, critic and reference share and that are never trained."""

    tokenizer: TextTokenizer
    encoder: BartEncoder
    vqgan: VqganDecoder

    @property
    def device(self) -> torch.device:
        return self.encoder.embed_positions.weight.device


@dataclass(frozen=True)
class DalleFamily:
    """`models.family.PolicyFamily` for decoders of DALL·E's architecture.

    Args:
        parts: tokenizer, text encoder and VQGAN.
        settings: guidance, temperature and so on: part of the policy, in drawing and in scoring.
        stores_kept: with top-k, draw from exactly k codes and return them, as training needs. It costs
            memory and the fast sampler on a GPU. Without it, ties are kept as the `min-dalle` package does.
        dtype: of the products in `score`, `remember` and `values`; the head computes in float32 at least.
        frozen_dtype: of the products of text encoder and VQGAN.
        logits_chunk: tokens whose logits exist at a time in `score`; "auto" to choose, None for all.
    """

    parts: FrozenParts
    settings: PolicySettings
    stores_kept: bool = False
    dtype: torch.dtype = torch.float32
    frozen_dtype: torch.dtype = torch.float32
    logits_chunk: int | Literal["auto"] | None = None

    @property
    def device(self) -> torch.device:
        return self.parts.device

    @torch.no_grad()
    def read(self, captions: Sequence[str]) -> tuple[Prompts, int]:
        """Encoder states of captions, and how many captions were too long for the encoder."""
        text = self.parts.tokenizer.encode(list(captions))
        unconditional = self.parts.tokenizer.unconditional().to(self.device)
        tokens = text.tokens.to(self.device)
        with self._autocast(self.frozen_dtype):
            prompts = encode_prompts(self.parts.encoder, tokens, unconditional, self.settings)
        return prompts, text.num_truncated

    def num_truncated(self, captions: Sequence[str]) -> int:
        """How many captions are too long for the encoder, as the tokenizer tells."""
        return self.parts.tokenizer.encode(list(captions)).num_truncated

    @torch.no_grad()
    def draw(
        self, weights: BartDecoder, prompts: Prompts, keys: Tensor, plan: MemoryPlan | None = None
    ) -> Drawing:
        """Draws images, all at once or in the parts of a plan; the images are the same either way."""
        return self._draw(weights, prompts, keys, plan, Keep(codes=self.stores_kept))

    @torch.no_grad()
    def draw_and_remember(
        self, weights: BartDecoder, prompts: Prompts, keys: Tensor, plan: MemoryPlan | None = None
    ) -> Drawing:
        """`draw`, with the hidden states that the tokens were drawn from: a fiftieth of the caches' size."""
        return self._draw(weights, prompts, keys, plan, Keep(hidden=True, codes=self.stores_kept))

    @torch.no_grad()
    def draw_tokens(
        self, weights: BartDecoder, prompts: Prompts, keys: Tensor, plan: MemoryPlan | None = None
    ) -> Drawing:
        """`draw_and_remember` without pixels, for images that nobody looks at."""
        keep = Keep(hidden=True, codes=self.stores_kept)
        samples = self._sample(weights, prompts, keys, plan, keep)
        return Drawing(samples.tokens, samples.log_probs, None, samples.hidden, samples.kept)

    def _draw(
        self, weights: BartDecoder, prompts: Prompts, keys: Tensor, plan: MemoryPlan | None, keep: Keep
    ) -> Drawing:
        samples = self._sample(weights, prompts, keys, plan, keep)
        images = self.decode(samples.tokens, plan)
        return Drawing(samples.tokens, samples.log_probs, images, samples.hidden, samples.kept)

    def _sample(
        self, weights: BartDecoder, prompts: Prompts, keys: Tensor, plan: MemoryPlan | None, keep: Keep
    ) -> Samples:
        keys = keys.to(self.device)
        if plan is None:
            return sample(weights, prompts, keys, self.settings, keep)
        return sample_in_parts(weights, prompts, keys, self.settings, plan.batch_size, keep)

    @property
    def text_token_count(self) -> int:
        """How many tokens of a caption the text encoder reads."""
        return self.parts.tokenizer.text_token_count

    def reads_nothing(self, caption: str) -> bool:
        """Whether nothing is left of a caption: the tokenizer knows only ASCII and the names of emoji."""
        tokenizer = self.parts.tokenizer
        return tokenizer.encode([caption]).tokens[0].equal(tokenizer.unconditional())

    def decode(self, tokens: Tensor, plan: MemoryPlan | None = None) -> Tensor:
        """Decodes tokens, int64 [N, T], to pixels, uint8 [N, 3, H, W]."""
        with self._autocast(self.frozen_dtype):
            size = None if plan is None else plan.microbatch_size
            return self.parts.vqgan.decode_uint8(tokens.to(self.device), size)

    @torch.no_grad()
    def remember(self, policy: BartDecoder, experience: Experience) -> HiddenStates:
        """The decoder's last hidden states: `score` applies only the head to them."""
        return self._hidden(policy, experience)

    def score(
        self,
        policy: BartDecoder,
        experience: Experience,
        *,
        entropy: bool = False,
        reference: BartDecoder | None = None,
        extra: Mapping[str, LogPiFunction] | None = None,
    ) -> TokenScores:
        """Scores the tokens as they were drawn, by teacher forcing; nothing is sampled again.

        With top-k, all scores are those of the distribution on the codes stored with the tokens. Images drawn
        without storing them, as in an evaluation, are scored on the policy's own k most likely codes.
        """
        states, ref_states = self._policy_states(policy, experience), None
        if reference is not None:
            with torch.no_grad():
                ref_states = experience.reference_states or self.remember(reference, experience)
        every = replace(self.settings, top_k=None)

        def score(hidden, ref_hidden, tokens, kept):
            log_pi, ref_log_pi = log_pi_of_hidden(policy, hidden, every), None
            if ref_hidden is not None:
                with torch.no_grad():
                    ref_log_pi = log_pi_of_hidden(reference, ref_hidden, every)
            return token_scores(log_pi, tokens, ref_log_pi, entropy, extra, self._kept(log_pi, tokens, kept))

        drawn, kept = experience.tokens, experience.kept
        chunk = chunk_tokens(self.logits_chunk, policy.config.num_codes)
        if chunk is None:
            return score(states, ref_states, drawn, kept)
        chunks = most_of(math.ceil(drawn.numel() / chunk), policy)
        return chunked_scores(score, (states, ref_states), drawn, kept, chunk, chunks)

    def new_critic(self, policy: BartDecoder) -> Critic:
        """A copy of the policy's trunk with a value head of zeros."""
        return Critic(policy)

    def values(self, critic: Critic, experience: Experience) -> Tensor:
        """The critic's values before each token, float32 [B, T]."""
        with self._autocast(self.dtype):
            cross = critic.cross_states(self._text(experience).text)
            return critic(experience.tokens, cross, self.settings.start_token)

    def trained(self, name: str, which: str) -> bool:
        """Whether `actor.trainable` includes the decoder's parameter of that name."""
        return any(part in name for part in TRAINABLE[which])

    def sampler_weights(self, actor: BartDecoder, dtype: str = "float32") -> BartDecoder:
        """The actor itself in float32, a copy of half the size in bfloat16; with any adapters merged in.

        Of an actor that processes hold in parts, always a whole copy; all of them must ask for it.
        """
        if is_sharded(actor):
            return gathered_decoder(actor, None if dtype == "float32" else getattr(torch, dtype))
        if dtype != "float32":
            return half_decoder(actor, getattr(torch, dtype))
        return whole_decoder(actor) if is_adapted(actor) or is_narrow(actor) else actor

    def plan(
        self, policy: BartDecoder, num_images: int, memory_gb: float = math.inf, dtype: str | None = None
    ) -> MemoryPlan:
        """How many images are sampled and decoded at a time.

        Raises:
            ValueError: not even one image fits.
        """
        kind = None if dtype is None else getattr(torch, dtype)
        settings = self.settings if self.stores_kept else replace(self.settings, top_k=None)
        kinds = kind, self.device.type  # where it draws, wherever the policy is now
        return plan_memory(policy, self.parts.vqgan, settings, num_images, memory_gb * 1e9, *kinds)

    def pack(self, policy: BartDecoder, plan: MemoryPlan) -> None:
        """Repacks large weights in place for the products of drawing by this plan."""
        num_rows = plan.batch_size * (2 if self.settings.guided else 1)
        if num_rows > FEW_ROWS:
            policy.pack(num_rows)

    def frozen(self) -> dict[str, nn.Module]:
        """Text encoder and VQGAN."""
        return {"encoder": self.parts.encoder, "vqgan": self.parts.vqgan}

    def _policy_states(self, policy: BartDecoder, experience: Experience) -> HiddenStates:
        if experience.policy_states is not None and not torch.is_grad_enabled():
            return experience.policy_states
        return self._hidden(policy, experience)

    def _hidden(self, policy: BartDecoder, experience: Experience) -> HiddenStates:
        with self._autocast(self.dtype):
            return hidden_of_tokens(policy, experience.tokens, self._text(experience), self.settings)

    def _kept(self, log_pi: Tensor, tokens: Tensor, kept: Tensor | None) -> Tensor | None:
        if self.settings.top_k is None or kept is not None:
            return kept
        return kept_codes(log_pi.detach(), self.settings.top_k, tokens)

    def _autocast(self, dtype: torch.dtype) -> AbstractContextManager:
        return nullcontext() if dtype == torch.float32 else autocast(self.device, dtype)

    def _text(self, experience: Experience) -> Prompts:
        return experience.prompts.select(experience.caption_index)


def half_decoder(decoder: BartDecoder, dtype: torch.dtype = torch.bfloat16) -> BartDecoder:
    """A copy to sample from, with weights of half the size except for the head, which computes in float32."""
    weights = merged_weights(decoder, dtype)
    weights |= {n: value.to(dtype) for n, value in weights.items() if not n.startswith("lm_head.")}
    return frozen_decoder(decoder.config, weights)


@torch.no_grad()
def sample_in_parts(
    decoder: BartDecoder,
    prompts: Prompts,
    keys: Tensor,
    settings: PolicySettings,
    batch_size: int,
    keep: Keep = NOTHING,
) -> Samples:
    """`sample`, at most `batch_size` images at a time; no image depends on where the batch is cut.

    Nothing is computed twice: each caption is read once, however its images are divided.
    """
    num_captions = len(prompts.text.mask)
    per_caption = len(keys) // num_captions
    at_once = max(1, batch_size // per_caption)  # whole captions, if their images fit
    unconditional = [decoder.cross_states(prompts.unconditional)] if settings.guided else []
    drawn = []
    for captions in torch.arange(num_captions, device=keys.device).split(at_once):
        branches = [decoder.cross_states(prompts.text.select(captions)), *unconditional]
        of_these = keys[captions[0] * per_caption : (captions[-1] + 1) * per_caption]
        for part in of_these.split(batch_size):
            drawn.append(sample_branches(decoder, branches, part, settings, keep))
    tokens, log_probs = torch.cat([s.tokens for s in drawn]), torch.cat([s.log_probs for s in drawn])
    hidden = [s.hidden for s in drawn if s.hidden is not None]
    kept = [s.kept for s in drawn if s.kept is not None]
    return Samples(
        tokens,
        log_probs,
        HiddenStates.cat(hidden) if hidden else None,
        torch.cat(kept) if kept else None,
    )
