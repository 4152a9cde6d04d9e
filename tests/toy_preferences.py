"""A store of plain coloured pictures whose better one is known, and a CLIP that sees their mean colour."""

import hashlib
import io
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image as Picture

from dalle_ppo.models.clip_scorer import ClipScorer
from dalle_ppo.preferences.store import Answer, Store

WIDTH = 8


@dataclass(kw_only=True)
class ToyClip(ClipScorer):
    """Embeds an image by its mean colour and a caption by its hash; another `seed` is another CLIP."""

    seed: int = 0

    @property
    def device(self):
        return torch.device("cpu")

    @property
    def crops(self):
        return True

    def resized(self, images):
        return images

    def encode_images(self, images):
        mixing = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(self.seed))
        return (images.mean(dim=(2, 3)) - 0.5) @ mixing

    def encode_texts(self, captions):
        rows = [list(hashlib.sha256(caption.encode()).digest()[:WIDTH]) for caption in captions]
        return torch.tensor(rows).float() - 127.5


def toy_clip(seed=0):
    return ToyClip(name=f"toy-{seed}", pretrained="none", seed=seed)


def coloured(rgb):
    """A PNG of one colour, in 0..1 for each channel."""
    buffer = io.BytesIO()
    Picture.new("RGB", (4, 4), tuple(int(255 * value) for value in rgb)).save(buffer, "png")
    return buffer.getvalue()


def toy_store(folder, captions=120, pictures=2, wrong=0.0, rater="ann", seed=0):
    """One ranking for each caption: the redder picture is better, except in a share of wrong answers."""
    rng, store = np.random.default_rng(seed), Store(folder)
    answers = []
    for number in range(captions):
        caption, colours = f"a boat, number {number}", rng.random((pictures, 3))
        keys = tuple(store.add_image(coloured(rgb), caption) for rgb in colours)
        redness = colours[:, 0] - colours[:, 1]
        order = redness if rng.random() < wrong else -redness
        ranks = tuple(int(rank) + 1 for rank in order.argsort().argsort())
        answers.append(Answer(caption, keys, "ranking", rater, "simulated", f"set {number}", ranks=ranks))
    store.append_all(answers)
    return store
