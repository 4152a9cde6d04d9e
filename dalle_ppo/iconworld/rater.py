"""A simulated rater, whose true preference is known: who teaches a reward model in minutes, without people.

It sees icons with eyes of its own: another seed and another architecture than the judge's, which tells the
results. Between two pictures it prefers, in this order,

1. the one without an unsafe icon;
2. the one that shows more of the named safe icons in their colours (where none is named, any icon at all);
3. the one whose icons are of warmer colours: red, orange or yellow.

What is equal in all three is a tie. As people do, it errs now and then: a wrong answer is the true one upside
down, or any order instead of a tie.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from dalle_ppo.iconworld.captions import parse_icons
from dalle_ppo.iconworld.scenes import ICON_COLORS, KINDS, UNSAFE_KINDS

WARM = ("red", "orange", "yellow")
WRONG_SHARE = 0.1
SAFE_WORTH, NAMED_WORTH = 8.0, 4.0
"""Worth of a picture without unsafe icons, and of one with all named icons; warm colours are worth 1 at most,
so that no later wish outweighs an earlier one."""


class Eyes(nn.Module):
    """Finds icons of each kind and colour in an image: strided patches, residual blocks, then a maximum."""

    def __init__(self, widths: tuple[int, ...] = (32, 64)):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, stride=4)]
        for i, width in enumerate(widths):
            if i:
                layers.append(nn.Conv2d(widths[i - 1], width, 2, stride=2))
            layers += [_Block(width), _Block(width)]
        self.body = nn.Sequential(*layers)
        self.norm = nn.GroupNorm(1, widths[-1])
        self.parts = nn.Conv2d(widths[-1], 192, 1)
        self.found = nn.Linear(192, len(KINDS) * len(ICON_COLORS))

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, 3, 64, 64] in 0..1 to logits [N, K, C]: is this kind in this colour anywhere?"""
        parts = F.relu(self.parts(self.norm(self.body(images - 0.5))))
        return self.found(parts.flatten(2).amax(-1)).unflatten(1, (len(KINDS), len(ICON_COLORS)))


class _Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.GroupNorm(1, width)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.norm(self.first(x))))


@dataclass(frozen=True)
class Seen:
    """What the rater sees in one picture: (kind, colour) of each icon."""

    icons: tuple[tuple[str, str], ...]

    @property
    def unsafe(self) -> bool:
        """Whether there is an unsafe icon."""
        return any(kind in UNSAFE_KINDS for kind, _ in self.icons)

    def named(self, caption: str) -> float:
        """Share, in 0..1, of the named safe icons that are there; where none is named, 1 for any icon."""
        wanted = [(kind, color) for kind, color in parse_icons(caption) if kind not in UNSAFE_KINDS]
        if not wanted:
            return float(bool(self.icons))
        there = dict(self.icons)
        hits = [kind in there and color in (None, there[kind]) for kind, color in wanted]
        return sum(hits) / len(hits)

    @property
    def warm(self) -> float:
        """Share of the icons that are red, orange or yellow, in 0..1; 0 without icons."""
        return sum(color in WARM for _, color in self.icons) / max(1, len(self.icons))

    def worth(self, caption: str) -> float:
        """One number that orders pictures of a caption as the rater does, in 0..13."""
        return SAFE_WORTH * (not self.unsafe) + NAMED_WORTH * self.named(caption) + self.warm


class SimulatedRater:
    """Ranks pictures of the built-in world.

    Args:
        eyes: a trained network.
        wrong_share: probability of a wrong answer.
        seed: of its errors.
    """

    def __init__(self, eyes: Eyes, wrong_share: float = WRONG_SHARE, seed: int = 0):
        if not 0 <= wrong_share <= 1:
            raise ValueError(f"wrong_share is {wrong_share}; it must lie between 0 and 1")
        self._eyes, self._wrong_share, self._seed = eyes.eval(), wrong_share, seed

    @torch.no_grad()
    def see(self, images: Tensor) -> list[Seen]:
        """What is in images, uint8 [N, 3, 64, 64]."""
        logits = torch.cat([self._eyes(chunk.float() / 255) for chunk in images.split(256)])
        best, color = logits.max(-1)
        return [
            Seen(tuple((KINDS[k], ICON_COLORS[color[i, k]]) for k in range(len(KINDS)) if best[i, k] > 0))
            for i in range(len(images))
        ]

    def ranks(self, worths: Sequence[float], question: str) -> tuple[int, ...]:
        """The answer, with its errors: 1 for the best, equal numbers for a tie.

        Args:
            worths: of the pictures.
            question: which one it is; the same question gets the same answer.
        """
        ranks = true_ranks(worths)
        digest = hashlib.sha256(f"{self._seed}|{question}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
        if rng.random() >= self._wrong_share:
            return ranks
        if len(set(ranks)) == 1:
            return tuple(int(rank) + 1 for rank in rng.permutation(len(ranks)))
        return true_ranks([-worth for worth in worths])


def true_ranks(worths: Sequence[float]) -> tuple[int, ...]:
    """1 for the largest number, 2 for the next, equal numbers for equal ones."""
    order = sorted(set(worths), reverse=True)
    return tuple(order.index(worth) + 1 for worth in worths)


def load_rater(path: Path, wrong_share: float = WRONG_SHARE, seed: int = 0) -> SimulatedRater:
    """The rater with the eyes that `making.rater` trained.

    Args:
        path: their file.
        wrong_share: probability of a wrong answer.
        seed: of its errors.
    """
    eyes = Eyes()
    eyes.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    return SimulatedRater(eyes, wrong_share, seed)
