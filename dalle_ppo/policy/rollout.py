"""From captions to images: one call draws an `Experience`."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dalle_ppo.base.halving import Halving
from dalle_ppo.captions.source import CaptionRecord
from dalle_ppo.models.family import Drawing, PolicyFamily
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
    halving: Halving | None = None,
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
        halving: remembers how many images fit, where memory runs out in spite of that.

    Raises:
        ValueError: not even one image fits.
    """
    prompts, num_truncated = family.read([caption.text for caption in captions])
    rows = [caption for caption in captions for _ in range(samples_per_caption)]
    ids = tuple(caption.id for caption in rows)
    keys = noise_keys(noise.seed, noise.stream, noise.iteration, ids, occurrences(ids)).to(family.device)

    def draw(size: int) -> Drawing:
        plan = None if memory_gb is None else family.plan(weights, min(size, len(rows)), memory_gb)
        if size >= len(rows):
            return family.draw(weights, prompts, keys, plan)
        return draw_in_parts(
            partial(family.draw, weights, plan=plan), prompts, keys, samples_per_caption, size
        )

    drawing = (halving or Halving()).run("drawing", "rollout.memory_gb", len(rows), draw)
    index = torch.arange(len(captions), device=family.device)
    return Experience(
        captions=tuple(caption.text for caption in rows),
        tags=tuple(caption.tag for caption in rows),
        caption_ids=ids,
        caption_index=index.repeat_interleave(samples_per_caption),
        tokens=drawing.tokens,
        sampler_log_probs=drawing.log_probs,
        images=drawing.images,
        prompts=prompts,
        num_truncated=num_truncated,
    )


def draw_in_parts(
    draw: Callable[[Any, Tensor], Drawing], prompts: Any, keys: Tensor, per_caption: int, size: int
) -> Drawing:
    """Draws at most `size` images at a time; no image depends on where the batch is cut.

    Args:
        draw: from prompts and keys.
        prompts: M prompts, as the family read them.
        keys: noise key of each image, int32 [M n, 2].
        per_caption: n, images of each caption.
        size: images at a time.
    """
    drawn = []
    for captions in torch.arange(len(keys) // per_caption, device=keys.device).split(
        max(1, size // per_caption)
    ):
        chosen = None if prompts is None else prompts.select(captions)
        of_these = keys[captions[0] * per_caption : (captions[-1] + 1) * per_caption]
        # A part of a caption's images is a batch of that one caption.
        pieces = of_these.split(size) if len(captions) == 1 else [of_these]
        drawn += [draw(chosen, piece) for piece in pieces]
    columns = ([getattr(part, f.name) for part in drawn] for f in fields(Drawing))
    return Drawing(*map(torch.cat, columns))


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
