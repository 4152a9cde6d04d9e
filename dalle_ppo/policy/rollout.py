"""From captions to images: one call draws an `Experience`."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dalle_ppo.captions.source import CaptionRecord
from dalle_ppo.models.family import PolicyFamily
from dalle_ppo.rl.noise import noise_keys
from dalle_ppo.rl.records import Experience


@dataclass(frozen=True)
class NoiseSource:
    """Where the sampling noise comes from: see `rl.noise.noise_keys`."""

    seed: int
    stream: str
    iteration: int = 0


@torch.no_grad()
def collect(
    family: PolicyFamily,
    weights: nn.Module,
    captions: Sequence[CaptionRecord],
    samples_per_caption: int,
    noise: NoiseSource,
    memory_gb: float | None = None,
    remember: bool = False,
) -> Experience:
    """Draws `samples_per_caption` images for each caption.

    Args:
        family: reads captions and draws.
        weights: from its `sampler_weights`.
        captions: M captions. One that is listed twice gets different noise the second time, and is read
            twice: the images of a prompt are adjacent, so merging the two would reorder the batch.
        samples_per_caption: n; the batch has B = M n images, those of a caption side by side.
        noise: source of the sampler's noise.
        memory_gb: for caches and activations; the batch is drawn in parts that fit. None draws it at once.
        remember: keep what saves work when these weights score the images, if the family can.

    Raises:
        ValueError: not even one image fits.
    """
    prompts, num_truncated = family.read([caption.text for caption in captions])
    rows = [caption for caption in captions for _ in range(samples_per_caption)]
    ids = tuple(caption.id for caption in rows)
    keys = noise_keys(noise.seed, noise.stream, noise.iteration, ids, occurrences(ids)).to(family.device)
    plan = None if memory_gb is None else family.plan(weights, len(rows), memory_gb)
    draw = getattr(family, "draw_and_remember", family.draw) if remember else family.draw
    drawing = draw(weights, prompts, keys, plan)
    index = torch.arange(len(captions), device=family.device)
    return Experience(
        captions=tuple(caption.text for caption in rows),
        tags=tuple(caption.tag for caption in rows),
        caption_ids=ids,
        caption_index=index.repeat_interleave(samples_per_caption),
        tokens=drawing.tokens,
        sampler_log_probs=drawing.log_probs,
        images=drawing.images,
        policy_states=drawing.states,
        kept=drawing.kept,
        prompts=prompts,
        num_truncated=num_truncated,
    )


def occurrences(ids: Sequence[str]) -> list[int]:
    """How often each id occurred earlier in the list."""
    seen: Counter[str] = Counter()
    found = []
    for caption in ids:
        found.append(seen[caption])
        seen[caption] += 1
    return found


def as_float(images: Tensor) -> Tensor:
    """Converts uint8 images to float32 in 0..1."""
    return images.to(torch.float32) / 255
