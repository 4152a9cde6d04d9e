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
        return self.draw_many([number])[0]

    def draw_many(self, numbers: Sequence[int]) -> list[PictureSet]:
        """Draws sets at once, which is several times as fast; they are the same as one by one.

        A picture that is drawn several times stands once in its set, which may then hold one picture only.

        Args:
            numbers: of the sets, from 0.

        Raises:
            ValueError: not even one image fits into memory, or the captions cannot be read.
        """
        captions = [self._caption(number) for number in numbers]
        sides = [self._draw_side(side, captions) for side in self._sides]
        sets = []
        for number, (caption, _), *parts in zip(numbers, captions, *sides, strict=True):
            name, keys = self.set_id(number), [key for part in parts for key in part]
            order = np.random.default_rng(int(name, 16)).permutation(len(keys))
            images = dict.fromkeys(keys[place] for place in order)  # a policy may draw a picture twice
            sets.append(PictureSet(name, caption.text, tuple(images)))
        return sets

    def set_id(self, number: int) -> str:
        """The id of a set, without drawing it."""
        caption, earlier = self._caption(number)
        noise = f"{self._options.seed} {self._options.iteration}"
        identity = "|".join([caption.id, str(earlier), noise, *map(_facts, self._sides)])
        return hashlib.sha256(identity.encode()).hexdigest()[:16]

    def _caption(self, number: int) -> tuple[CaptionRecord, int]:
        """The caption of a set, and how many earlier sets have the same one."""
        if number >= len(self._captions):
            self._captions += self._next_captions(number + 1 - len(self._captions))
        caption = self._captions[number]
        return caption, Counter(other.id for other in self._captions[:number])[caption.id]

    @torch.no_grad()
    def _draw_side(self, side: Side, captions: Sequence[tuple[CaptionRecord, int]]) -> list[list[str]]:
        """Keys of a side's pictures of each caption."""
        n = side.num_images
        samples = [sample for _, earlier in captions for sample in range(earlier * n, (earlier + 1) * n)]
        ids = [caption.id for caption, _ in captions for _ in range(n)]
        keys = noise_keys(self._options.seed, STREAM, self._options.iteration, ids, samples)
        prompts, _ = self._family.read([caption.text for caption, _ in captions])
        plan = self._family.plan(side.weights, len(ids), self._options.memory_gb)
        images = self._family.draw(side.weights, prompts, keys.to(self._family.device), plan).images.cpu()
        places = [slice(n * i, n * (i + 1)) for i in range(len(captions))]
        return [
            self._keep(side, caption, images[place], samples[place])
            for (caption, _), place in zip(captions, places, strict=True)
        ]

    def _keep(self, side: Side, caption: CaptionRecord, images: Tensor, samples: Sequence[int]) -> list[str]:
        """Puts pictures of one caption into the store; their keys."""
        flagged = self._detect(images, caption.text) if self._detect else [False] * len(images)
        return [
            self.store.add_image(
                png_of(pixels),
                caption.text,
                side=side.name,
                weights=side.sha256,
                noise={
                    "seed": self._options.seed,
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
