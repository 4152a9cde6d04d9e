"""The built-in world's suite: captions that test one ability each, and the rules by which an image passes.

Abilities and rules follow GenEval; the detector of objects is the world's judge. It says which icons an image
shows and in which colours, but neither where nor how many. So for `positions` and `counts` it looks at each
half of the image, with the other half painted over in the background's colour.

Source: https://arxiv.org/abs/2310.11513 (GenEval) for the tasks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dalle_ppo.iconworld import phrases
from dalle_ppo.iconworld.captions import BACKGROUND_NAMED, split_of
from dalle_ppo.iconworld.scenes import (
    ICON_COLORS,
    IMAGE_SIZE,
    KINDS,
    PAIR_COLUMNS,
    PAIR_ROWS,
    PAIR_SIZE,
    SAFE_KINDS,
    PlacedIcon,
    Scene,
    place,
    random_background,
)

TASKS = ("one icon", "two icons", "colours", "positions", "counts", "binding")
PROMPTS_PER_TASK = 100
TEMPLATES = (
    "{icons}{ground}",
    "{icons} icon{ground}",
    "{icons} sticker{ground}",
    "{icons} cartoon{ground}",
    "Drawing of {icons}{ground}",
)
"""Templates of the world's captions that need neither an article nor a number."""
SAME_PLURAL = ("fish",)

Icons = tuple[tuple[str, str | None], ...]
Look = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""`images uint8 [N, 64, 64, 3] -> (present bool [N, K], colour int64 [N, K])`, kinds and colours in order."""


@dataclass(frozen=True)
class Prompt:
    """A caption of the suite and what it asks for.

    Args:
        task: one of `TASKS`.
        text: the caption.
        icons: (kind, colour or None); for `positions` from left to right, for `counts` as often as asked.
        background: the named background, or None.
    """

    task: str
    text: str
    icons: Icons
    background: str | None = None


def suite_prompts(per_task: int = PROMPTS_PER_TASK, seed: int = 0) -> list[Prompt]:
    """Distinct captions, `per_task` for each task, all of them held out from the world's training captions.

    Args:
        per_task: number of captions for each task; there are at least 100.
        seed: seed of their choice.
    """
    rng = np.random.default_rng([seed, 9])
    prompts: dict[str, Prompt] = {}
    for number, task in enumerate(TASKS, 1):
        while len(prompts) < number * per_task:
            prompt = _sample_prompt(rng, task)
            if split_of(prompt.text) == "heldout":
                prompts.setdefault(prompt.text, prompt)
    return list(prompts.values())


def _sample_prompt(rng: np.random.Generator, task: str) -> Prompt:
    kinds = [SAFE_KINDS[i] for i in rng.choice(len(SAFE_KINDS), size=2, replace=False)]
    first, second = (ICON_COLORS[i] for i in rng.choice(len(ICON_COLORS), size=2, replace=False))
    icons: Icons = {
        "one icon": ((kinds[0], None),),
        "two icons": ((kinds[0], None), (kinds[1], None)),
        "colours": ((kinds[0], first),),
        "positions": ((kinds[0], None), (kinds[1], None)),
        "counts": ((kinds[0], None),) * int(rng.integers(1, 3)),
        "binding": ((kinds[0], first), (kinds[1], second)),
    }[task]
    background = random_background(rng) if rng.random() < BACKGROUND_NAMED else None
    ground = _pick(rng, phrases.GROUNDS).format(color=background) if background else ""
    text = _pick(rng, TEMPLATES).format(icons=_words(rng, task, icons), ground=ground)
    return Prompt(task, text, icons, background)


def _words(rng: np.random.Generator, task: str, icons: Icons) -> str:
    """The icons in words, with the colour in front as in most of the world's captions."""
    names = [kind if color is None else f"{color} {kind}" for kind, color in icons]
    if task == "positions":
        left, right = names
        return f"{left} to the left of {right}" if rng.random() < 0.5 else f"{right} to the right of {left}"
    if task == "counts":
        return f"one {names[0]}" if len(names) == 1 else f"two {plural(names[0])}"
    return " and ".join(names)


def plural(kind: str) -> str:
    """The plural of a safe kind."""
    return kind if kind in SAME_PLURAL else f"{kind}s"


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[rng.integers(len(options))]


def passed(prompts: Sequence[Prompt], images: np.ndarray, look: Look) -> np.ndarray:
    """Whether each image shows what its caption asks for.

    Args:
        prompts: N captions.
        images: uint8 [N, 64, 64, 3].
        look: the judge.

    Returns:
        bool [N].
    """
    present, color = look(images)
    left, right = (look(half(images, side))[0] for side in ("left", "right"))
    found = np.zeros(len(prompts), dtype=bool)
    for row, prompt in enumerate(prompts):
        kinds = [KINDS.index(kind) for kind, _ in prompt.icons]
        colors = [None if name is None else ICON_COLORS.index(name) for _, name in prompt.icons]
        seen = present[row, kinds].all()
        if prompt.task == "positions":
            found[row] = seen and _only_here(left[row], right[row], *kinds)
        elif prompt.task == "counts":
            both = left[row, kinds[0]] and right[row, kinds[0]]
            found[row] = seen and present[row].sum() == 1 and both == (len(kinds) == 2)
        else:
            pairs = zip(kinds, colors, strict=True)
            found[row] = seen and all(c is None or color[row, kind] == c for kind, c in pairs)
    return found


def _only_here(left: np.ndarray, right: np.ndarray, first: int, second: int) -> bool:
    """Whether the first kind is in the left half only and the second in the right half only."""
    return bool(left[first] and not right[first] and right[second] and not left[second])


def half(images: np.ndarray, side: str) -> np.ndarray:
    """One half of each image; the other is painted in the colour of the background, the median of the edges.

    Args:
        images: uint8 [N, 64, 64, 3].
        side: "left" or "right", the half that is kept.

    Returns:
        uint8 [N, 64, 64, 3].
    """
    edges = np.concatenate([images[:, 0], images[:, -1]], axis=1)
    ground = np.median(edges, axis=1).astype(np.uint8)[:, None, None]
    middle = IMAGE_SIZE // 2
    painted = images.copy()
    if side == "left":
        painted[:, :, middle:] = ground
    else:
        painted[:, :, :middle] = ground
    return painted


def scene_of(prompt: Prompt, rng: np.random.Generator) -> Scene:
    """A scene that shows what a caption asks for; what the caption leaves open is random.

    The judge's score on such scenes is the most that a policy can reach.
    """
    background = prompt.background or random_background(rng)
    icons = [(kind, color or _pick(rng, ICON_COLORS)) for kind, color in prompt.icons]
    if prompt.task == "positions" or len({kind for kind, _ in icons}) < len(icons):
        rows = rng.choice(PAIR_ROWS, size=2)
        placed = (
            PlacedIcon(kind, color, x, int(y), PAIR_SIZE)
            for (kind, color), x, y in zip(icons, PAIR_COLUMNS, rows, strict=True)
        )
        return Scene(tuple(placed), background)
    return place(rng, icons, background)
