"""Which sets are worth an answer: those where the members of a reward model disagree about the best picture.

Each member gives each picture of a set a probability of being the best. The choice that an answer makes among
the pictures tells as many nats about which member is right as the entropy of their mean exceeds the mean of
their entropies. Sets that all members find hard, because the pictures are alike, tell nothing.

Source: Houlsby et al. 2011, https://arxiv.org/abs/1112.5745, eq. 2.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dalle_ppo.models.clip_scorer import ClipScorer
from dalle_ppo.models.heads.preference import PreferenceHead, features
from dalle_ppo.preferences.answer import PictureSet
from dalle_ppo.preferences.reward_model.data import image_embeddings
from dalle_ppo.preferences.store import Store


def disagreement(scores: Tensor) -> float:
    """How much an answer would tell about which member is right.

    Args:
        scores: of N pictures by k members, [N, k].

    Returns:
        Nats; 0 if the members agree, at most the smaller of ln N and ln k.
    """
    best = scores.double().softmax(dim=0)
    entropy = torch.special.entr(best.mean(dim=1)).sum() - torch.special.entr(best).sum(dim=0).mean()
    return max(0.0, float(entropy))


class Disagreement:
    """Sorts sets by what an answer to them would tell; the same sets are sorted alike.

    Args:
        head: a reward model with several members.
        store: has the pictures.
        clip: the head's CLIP.

    Raises:
        ValueError: the reward model has one member only.
    """

    def __init__(self, head: PreferenceHead, store: Store, clip: ClipScorer):
        self.by = head.info.source_sha256
        self._head, self._store, self._clip = head, store, clip
        with torch.no_grad():
            members = head.layers(torch.zeros(1, 3 * head.info.dimension, device=clip.device)).shape[1]
        if members < 2:
            raise ValueError(
                f"{head.path} has one member, which cannot disagree; fit it with --members 5, or leave out "
                "--choose disagreement"
            )

    def __call__(self, sets: Sequence[PictureSet]) -> list[int]:
        """Places in the given list, those that tell most first; equal ones stay in order."""
        told = self.told(sets)
        return sorted(range(len(sets)), key=lambda place: -told[place])

    def told(self, sets: Sequence[PictureSet]) -> list[float]:
        """Nats that an answer to each set would tell; 0 where a picture cannot be read."""
        keys = sorted({key for shown in sets for key in shown.images})
        images, _ = image_embeddings(self._store, keys, self._clip)
        texts = self._clip.embed_texts([shown.caption for shown in sets])
        return [self._told(shown, images, text) for shown, text in zip(sets, texts, strict=True)]

    def _told(self, shown: PictureSet, images: dict[str, Tensor], text: Tensor) -> float:
        keys = list(dict.fromkeys(shown.images))  # a picture that was drawn twice is one choice
        if not all(key in images for key in keys):
            return 0.0
        embedded = torch.stack([images[key] for key in keys]).to(self._clip.device)
        with torch.no_grad():
            scores = self._head.layers(features(embedded, text.expand(len(keys), -1)))
        return disagreement(scores)
