"""Where a step of the sampler spends its time: seconds by part of the network.

It times functions, not kernels, because a kernel does not say which part of the network it belongs to. This
works on CPUs, where a function returns when its work is done.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from unittest.mock import patch

from torch import nn

from dalle_ppo.models.dalle import sampling
from dalle_ppo.models.dalle.bart import GLU, BartDecoder, DecoderLayer
from dalle_ppo.models.dalle.linear import Linear, PackedLinear

STEP = "the rest: embeddings, argmax, Python"
# A function, and the part that its time counts towards.
PARTS = (
    (Linear, "forward", "projections and GLU products"),
    (DecoderLayer, "attend_cache", "self attention and cache, without projections"),
    (DecoderLayer, "attend_branches", "cross attention, without projections"),
    (nn.LayerNorm, "forward", "norms"),
    (GLU, "forward", "GELU and gate"),
    (BartDecoder, "head", "head"),
    (sampling, "guided_log_pi", "guidance, top-k, softmax"),
    (sampling, "gumbel_noise", "noise"),
    (sampling._Drawing, "advance", STEP),
    (PackedLinear, "forward", "projections and GLU products"),
)


class PartTimer:
    """Seconds of a step by part. When a part calls another, that time counts for the other."""

    def __init__(self) -> None:
        self.seconds = {part: 0.0 for _, _, part in PARTS}
        self.running: list[str] = []
        self.last = 0.0

    def switch(self) -> None:
        """Adds the time since the last switch to the part that is running."""
        now = time.perf_counter()
        if self.running:
            self.seconds[self.running[-1]] += now - self.last
        self.last = now

    def timed(self, function: Callable, part: str) -> Callable:
        """The function with timing; outside a step it is just called."""

        def call(*args, **kwargs):
            if not self.running and part != STEP:
                return function(*args, **kwargs)
            self.switch()
            self.running.append(part)
            try:
                return function(*args, **kwargs)
            finally:
                self.switch()
                self.running.pop()

        return call


def step_seconds(draw: Callable[[], object], num_steps: int) -> dict[str, float]:
    """Seconds of one step by part, averaged over a whole draw.

    Args:
        draw: calls `sampling.sample` once.
        num_steps: tokens that it draws per image.
    """
    timer = PartTimer()
    with ExitStack() as stack:
        for owner, name, part in PARTS:
            stack.enter_context(patch.object(owner, name, timer.timed(getattr(owner, name), part)))
        draw()
    return {part: seconds / num_steps for part, seconds in timer.seconds.items()}


def step_table(columns: Mapping[int, Mapping[str, float]]) -> str:
    """A Markdown table of `step_seconds` by number of images: one row per part, with its share of a step."""
    totals = {count: sum(parts.values()) for count, parts in columns.items()}
    rows = [
        ["ms per step", *(f"{count} images" for count in columns)],
        ["---"] * (len(columns) + 1),
        *(
            [part, *(f"{1e3 * c[part]:.2f} ({c[part] / totals[n]:.0%})" for n, c in columns.items())]
            for part in dict.fromkeys(part for _, _, part in PARTS)
        ),
        ["all", *(f"{1e3 * total:.2f}" for total in totals.values())],
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
