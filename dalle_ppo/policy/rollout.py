"""From captions to images: one call collects a `RolloutBatch`."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dalle_ppo.captions.source import CaptionRecord
from dalle_ppo.models.dalle.bart import BartDecoder, BartEncoder, frozen_decoder
from dalle_ppo.models.dalle.sampling import (
    Prompts,
    Samples,
    encode_prompts,
    noise_keys,
    sample,
    sample_branches,
)
from dalle_ppo.models.dalle.tokenizer import TextTokenizer
from dalle_ppo.models.dalle.vqgan import VqganDecoder
from dalle_ppo.models.policy_settings import PolicySettings
from dalle_ppo.policy.memory_plan import plan_memory
from dalle_ppo.rl.records import RolloutBatch


@dataclass(frozen=True)
class FrozenParts:
    """What actor, critic and reference share and nothing trains."""

    tokenizer: TextTokenizer
    encoder: BartEncoder
    vqgan: VqganDecoder

    @property
    def device(self) -> torch.device:
        return self.encoder.embed_positions.weight.device


@dataclass(frozen=True)
class NoiseSource:
    """Where the sampling noise comes from: see `sampling.noise_keys`."""

    seed: int
    stream: str
    iteration: int = 0


@dataclass(frozen=True)
class Rollout:
    """A batch of images, the captions' states that drew it, and how many captions were too long."""

    batch: RolloutBatch
    prompts: Prompts
    num_truncated: int


def collect(
    decoder: BartDecoder,
    parts: FrozenParts,
    captions: Sequence[CaptionRecord],
    samples_per_caption: int,
    noise: NoiseSource,
    settings: PolicySettings,
    memory_gb: float | None = None,
) -> Rollout:
    """Draws `samples_per_caption` images of each caption.

    Args:
        decoder: actor or reference.
        parts: tokenizer, text encoder, VQGAN.
        captions: M of them. One that stands in the list twice gets other noise the second time, and is
            encoded twice: the images of a row of `prompts` are neighbours, so merging the two would reorder
            the batch.
        samples_per_caption: n; the batch has B = M n images, those of a caption side by side.
        noise: of the sampler.
        settings: of the policy.
        memory_gb: for caches and activations; the batch is drawn in parts that fit. None draws it at once.

    Raises:
        ValueError: if not even one image fits.
    """
    prompts, num_truncated = encode_captions(parts, [c.text for c in captions], settings)
    rows = [caption for caption in captions for _ in range(samples_per_caption)]
    seen: Counter[str] = Counter()
    sample_index = []
    for caption in rows:
        sample_index.append(seen[caption.id])
        seen[caption.id] += 1
    ids = tuple(caption.id for caption in rows)
    keys = noise_keys(noise.seed, noise.stream, noise.iteration, ids, sample_index).to(parts.device)
    if memory_gb is None:
        samples = sample(decoder, prompts, keys, settings)
        images = parts.vqgan.decode_uint8(samples.tokens)
    else:
        plan = plan_memory(decoder, parts.vqgan, settings, len(rows), memory_gb * 1e9)
        samples = sample_in_parts(decoder, prompts, keys, settings, plan.batch_size)
        images = parts.vqgan.decode_uint8(samples.tokens, plan.microbatch_size)
    batch = RolloutBatch(
        captions=tuple(caption.text for caption in rows),
        tags=tuple(caption.tag for caption in rows),
        caption_ids=ids,
        caption_index=torch.arange(len(captions), device=parts.device).repeat_interleave(samples_per_caption),
        tokens=samples.tokens,
        sampler_log_probs=samples.log_probs,
        images=images,
    )
    return Rollout(batch, prompts, num_truncated)


@torch.no_grad()
def sample_in_parts(
    decoder: BartDecoder, prompts: Prompts, keys: Tensor, settings: PolicySettings, batch_size: int
) -> Samples:
    """`sample`, at most `batch_size` images at a time; no image depends on where the batch is cut.

    Nor is anything computed twice: captions are read once, wherever their images are cut apart.
    """
    num_captions = len(prompts.text.mask)
    per_caption = len(keys) // num_captions
    at_once = max(1, batch_size // per_caption)  # whole captions, where as many images fit
    unconditional = [decoder.cross_states(prompts.unconditional)] if settings.guided else []
    drawn = []
    for captions in torch.arange(num_captions, device=keys.device).split(at_once):
        branches = [decoder.cross_states(prompts.text.select(captions)), *unconditional]
        of_these = keys[captions[0] * per_caption : (captions[-1] + 1) * per_caption]
        drawn += [sample_branches(decoder, branches, part, settings) for part in of_these.split(batch_size)]
    return Samples(torch.cat([s.tokens for s in drawn]), torch.cat([s.log_probs for s in drawn]))


def as_bfloat16(decoder: BartDecoder) -> BartDecoder:
    """A copy to sample from, with weights of half the size but for the head, which computes in float32."""
    weights = decoder.state_dict()
    weights |= {n: value.to(torch.bfloat16) for n, value in weights.items() if not n.startswith("lm_head.")}
    return frozen_decoder(decoder.config, weights)


def encode_captions(
    parts: FrozenParts, texts: Sequence[str], settings: PolicySettings
) -> tuple[Prompts, int]:
    """Encoder states of captions, and how many of them were too long for the encoder."""
    text = parts.tokenizer.encode(list(texts))
    unconditional = parts.tokenizer.unconditional().to(parts.device)
    prompts = encode_prompts(parts.encoder, text.tokens.to(parts.device), unconditional, settings)
    return prompts, text.num_truncated


def as_float(images: Tensor) -> Tensor:
    """uint8 images to float32 in 0..1."""
    return images.to(torch.float32) / 255
