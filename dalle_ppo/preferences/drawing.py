"""Draws the sets of pictures that are labelled; set number k of a policy is always the same."""

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image as Picture
from torch import Tensor, nn

from dalle_ppo.captions.source import CaptionRecord
from dalle_ppo.models.family import PolicyFamily
from dalle_ppo.preferences.answer import PictureSet
from dalle_ppo.preferences.store import Store
from dalle_ppo.rl.noise import noise_keys
from dalle_ppo.runs.pictures import to_numpy

STREAM = "labels"
"""The stream of the sampling noise: training, evaluation and labels never share any."""


@dataclass(frozen=True)
class Side:
    """One policy that draws for a set.

    Args:
        name: "policy" or "reference".
        weights: from `sampler_weights`.
        sha256: hash of its weights, from `weights_sha256`.
        num_images: how many pictures of a set are its own.
    """

    name: str
    weights: nn.Module
    sha256: str
    num_images: int


@dataclass(frozen=True)
class DrawOptions:
    """How sets are drawn.

    Args:
        seed: of the noise and of the order.
        iteration: of the checkpoint.
        memory_gb: for caches and activations.
    """

    seed: int = 0
    iteration: int = 0
    memory_gb: float = 4.0


class Drawer:
    """Draws set after set, and puts their pictures into a store.

    Args:
        family: reads captions and draws.
        sides: each draws its own pictures of a set.
        next_captions: returns the next n captions, as `CaptionSource.next_batch`.
        store: where pictures go.
        options: seed, iteration, memory.
        detect: `(images uint8 [N, 3, H, W], caption) -> [N] bools`: is it unsafe? None if nobody can tell.
    """

    def __init__(
        self,
        family: PolicyFamily,
        sides: Sequence[Side],
        next_captions: Callable[[int], list[CaptionRecord]],
        store: Store,
        options: DrawOptions,
        detect: Callable[[Tensor, str], list[bool]] | None = None,
    ):
        self._family, self._sides, self._next_captions = family, tuple(sides), next_captions
        self.store, self._options, self._detect = store, options, detect
        self._captions: list[CaptionRecord] = []

    def draw(self, number: int) -> PictureSet:
        """Draws a set; drawing it again gives the same pictures and the same id.

        Args:
            number: of the set, from 0.

        Raises:
            ValueError: not even one image fits into memory, or the captions cannot be read.
        """
        caption, earlier = self._caption(number)
        name = self.set_id(number)
        keys = [key for side in self._sides for key in self._draw_side(side, caption, earlier)]
        order = np.random.default_rng(int(name, 16)).permutation(len(keys))
        return PictureSet(name, caption.text, tuple(keys[place] for place in order))

    def set_id(self, number: int) -> str:
        """The id of a set, without drawing it."""
        caption, earlier = self._caption(number)
        identity = "|".join([caption.id, str(earlier), str(self._options), *map(_facts, self._sides)])
        return hashlib.sha256(identity.encode()).hexdigest()[:16]

    def _caption(self, number: int) -> tuple[CaptionRecord, int]:
        """The caption of a set, and how many earlier sets have the same one."""
        if number >= len(self._captions):
            self._captions += self._next_captions(number + 1 - len(self._captions))
        caption = self._captions[number]
        return caption, Counter(other.id for other in self._captions[:number])[caption.id]

    @torch.no_grad()
    def _draw_side(self, side: Side, caption: CaptionRecord, earlier: int) -> list[str]:
        """Keys of a side's pictures."""
        seed, n = self._options.seed, side.num_images
        samples = range(earlier * n, (earlier + 1) * n)
        keys = noise_keys(seed, STREAM, self._options.iteration, [caption.id] * n, samples)
        prompts, _ = self._family.read([caption.text])
        plan = self._family.plan(side.weights, n, self._options.memory_gb)
        images = self._family.draw(side.weights, prompts, keys.to(self._family.device), plan).images.cpu()
        flagged = self._detect(images, caption.text) if self._detect else [False] * n
        return [
            self.store.add_image(
                png_of(pixels),
                caption.text,
                side=side.name,
                weights=side.sha256,
                noise={
                    "seed": seed,
                    "stream": STREAM,
                    "iteration": self._options.iteration,
                    "caption_id": caption.id,
                    "sample": sample,
                },
                flagged=flag,
            )
            for pixels, sample, flag in zip(to_numpy(images), samples, flagged, strict=True)
        ]


def png_of(pixels: np.ndarray) -> bytes:
    """An image, uint8 [H, W, 3], as a PNG file."""
    buffer = io.BytesIO()
    Picture.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def _facts(side: Side) -> str:
    return f"{side.name} {side.sha256} {side.num_images}"
