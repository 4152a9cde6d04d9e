"""From captions to images: one call draws an `Experience`."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dalle_ppo.base.halving import Halving
from dalle_ppo.base.team import ALONE, Team
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


@dataclass(frozen=True)
class Means:
    """With what images are drawn.

    Args:
        team: the processes that draw; all of them get all images, which do not depend on who draws them.
        halving: remembers how many images fit, where memory runs out.
        remember: keep what saves work when the same weights score the images, if the family can; for a
            process on its own.
        pixels: decode the images. Without, a family that can leaves them out, and remembers what it draws.
    """

    team: Team = ALONE
    halving: Halving | None = None
    remember: bool = False
    pixels: bool = True


ALL_AT_ONCE = Means()


@torch.no_grad()
def collect(
    family: PolicyFamily,
    weights: nn.Module,
    captions: Sequence[CaptionRecord],
    samples_per_caption: int,
    noise: NoiseSource,
    memory_gb: float | None = None,
    means: Means = ALL_AT_ONCE,
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
        means: who draws, what is kept, and what happens when memory runs out in spite of `memory_gb`.

    Raises:
        ValueError: not even one image fits.
    """
    prompts, num_truncated = family.read([caption.text for caption in captions])
    rows = [caption for caption in captions for _ in range(samples_per_caption)]
    ids = tuple(caption.id for caption in rows)
    keys = noise_keys(noise.seed, noise.stream, noise.iteration, ids, occurrences(ids)).to(family.device)
    index = torch.arange(len(captions), device=family.device)
    team = means.team
    mine, own_prompts = team.share(len(captions)), prompts
    if team.size > 1:
        keys = keys[mine.start * samples_per_caption : mine.stop * samples_per_caption]
        own_prompts = prompts if prompts is None else prompts.select(index[mine])
    draw = drawing_of(family, means)

    def work(size: int) -> Drawing:
        plan = None if memory_gb is None else family.plan(weights, min(size, len(keys)), memory_gb)
        if size >= len(keys):
            return draw(weights, own_prompts, keys, plan)
        of_part = partial(draw, weights, plan=plan)
        return draw_in_parts(of_part, own_prompts, keys, samples_per_caption, size)

    run = partial((means.halving or Halving()).run, "drawing", "rollout.memory_gb", len(keys), work)
    drawing = team.everywhere(run)  # a process where it does not fit tells the others, which would wait
    assert drawing.states is None or team.size == 1, "states are not joined"
    return Experience(
        captions=tuple(caption.text for caption in rows),
        tags=tuple(caption.tag for caption in rows),
        caption_ids=ids,
        caption_index=index.repeat_interleave(samples_per_caption),
        tokens=of_all(drawing.tokens, len(captions), team),
        sampler_log_probs=of_all(drawing.log_probs, len(captions), team),
        images=None if drawing.images is None else of_all(drawing.images, len(captions), team),
        policy_states=drawing.states,
        kept=None if drawing.kept is None else of_all(drawing.kept, len(captions), team),
        prompts=prompts,
        num_truncated=num_truncated,
    )


def drawing_of(family: PolicyFamily, means: Means) -> Callable[..., Drawing]:
    """The family's method that draws what is asked for; a family may lack all but `draw`."""
    name = "draw_and_remember" if means.remember else "draw"
    return getattr(family, name if means.pixels else "draw_tokens", family.draw)


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
    return Drawing(*map(_cat, columns))


def _cat(parts: Sequence[Any]) -> Any:
    """The rows of tensors, or of records with a `cat`, one after the other; None stays None."""
    if parts[0] is None:
        return None
    return torch.cat(parts) if isinstance(parts[0], Tensor) else type(parts[0]).cat(parts)


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
