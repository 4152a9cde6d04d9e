"""From captions to images: one call draws an `Experience`."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dalle_ppo.base.team import ALONE, Team
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
    team: Team = ALONE,
) -> Experience:
    """Draws `samples_per_caption` images for each caption, each process those of its share of the captions.

    Args:
        family: reads captions and draws.
        weights: from its `sampler_weights`.
        captions: M captions. One that is listed twice gets different noise the second time, and is read
            twice: the images of a prompt are adjacent, so merging the two would reorder the batch.
        samples_per_caption: n; the batch has B = M n images, those of a caption side by side.
        noise: source of the sampler's noise.
        memory_gb: for caches and activations; the batch is drawn in parts that fit. None draws it at once.
        remember: keep what saves work when these weights score the images, if the family can.
        team: the processes that draw; all of them get all images, which do not depend on who draws them.

    Raises:
        ValueError: not even one image fits.
    """
    prompts, num_truncated = family.read([caption.text for caption in captions])
    rows = [caption for caption in captions for _ in range(samples_per_caption)]
    ids = tuple(caption.id for caption in rows)
    keys = noise_keys(noise.seed, noise.stream, noise.iteration, ids, occurrences(ids)).to(family.device)
    index = torch.arange(len(captions), device=family.device)
    mine, own_prompts = team.share(len(captions)), prompts
    if team.size > 1:
        keys = keys[mine.start * samples_per_caption : mine.stop * samples_per_caption]
        own_prompts = prompts if prompts is None else prompts.select(index[mine])
    plan = None if memory_gb is None else family.plan(weights, len(keys), memory_gb)
    draw = getattr(family, "draw_and_remember", family.draw) if remember else family.draw
    drawing = draw(weights, own_prompts, keys, plan)
    assert drawing.states is None or team.size == 1, "states are not joined"
    parts = drawing.tokens, drawing.log_probs, drawing.images
    tokens, log_probs, images = (of_all(part, len(captions), team) for part in parts)
    return Experience(
        captions=tuple(caption.text for caption in rows),
        tags=tuple(caption.tag for caption in rows),
        caption_ids=ids,
        caption_index=index.repeat_interleave(samples_per_caption),
        tokens=tokens,
        sampler_log_probs=log_probs,
        images=images,
        policy_states=drawing.states,
        kept=None if drawing.kept is None else of_all(drawing.kept, len(captions), team),
        prompts=prompts,
        num_truncated=num_truncated,
    )


def of_all(part: Tensor, num_captions: int, team: Team) -> Tensor:
    """The rows of all processes' captions, in order.

    Args:
        part: rows of this process's captions, the same number for each.
        num_captions: captions in all.
        team: the processes.
    """
    if team.size == 1:
        return part
    mine = team.share(num_captions)
    return team.join(part.unflatten(0, (mine.stop - mine.start, -1)), num_captions).flatten(0, 1)


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
