"""From the answers of a store to rankings of embedded pictures, split by caption."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dalle_ppo.models.clip_scorer import ClipScorer
from dalle_ppo.models.heads.preference import features
from dalle_ppo.preferences.store import Answer, Store
from dalle_ppo.training.detector.images import embed_images

SHARES = {"fit": 0.65, "validation": 0.15, "test": 0.2}
"""Shares of the captions to learn from, to stop and calibrate by, and to measure on."""
MIN_CAPTIONS = 5
"""How many captions with a decided pair each part needs."""
ONE_PLACE = 12
"""A rater who has put one place first in that many answers, and no other ever, has not looked."""
BATCH = 128


@dataclass(frozen=True)
class Rankings:
    """A rankings of up to N of P pictures.

    Args:
        features: float32 [P, F], of a picture with its caption.
        index: int64 [A, N], rows of `features`; 0 where there are fewer pictures.
        ranks: int64 [A, N], 1 is best, equal numbers are a tie; 0 where there are fewer pictures.
        captions: A of them.
    """

    features: Tensor
    index: Tensor
    ranks: Tensor
    captions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.captions)

    def rows(self, which: Sequence[int]) -> Rankings:
        """Some of the rankings, of the same pictures."""
        picked = torch.as_tensor(which, dtype=torch.int64)
        captions = tuple(self.captions[i] for i in which)
        return replace(self, index=self.index[picked], ranks=self.ranks[picked], captions=captions)

    def pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The decided pairs: rows of the better and worse pictures, and of the rankings, int64 [Q]."""
        better = (self.ranks[:, :, None] < self.ranks[:, None, :]) & (self.ranks[:, :, None] > 0)
        ranking, winner, loser = better.nonzero(as_tuple=True)
        found = self.index[ranking, winner], self.index[ranking, loser], ranking
        return tuple(part.numpy() for part in found)


@dataclass(frozen=True)
class Found:
    """What a store holds to learn from.

    Args:
        rankings: answers with at least one decided pair of pictures that are there.
        notes: for people: what was left out, and what is odd.
        sha256: hash of the answers learned from.
        raters: number of answers of each rater.
    """

    answers: tuple[Answer, ...]
    notes: tuple[str, ...]
    sha256: str
    raters: dict[str, int]


def find_answers(store: Store) -> Found:
    """The answers to learn from: rankings, and ratings taken as rankings.

    Raises:
        ValueError: none is left.
    """
    answers = [answer for answer in map(as_ranking, store.answers()) if answer is not None]
    if not answers:
        raise ValueError(
            f"{store.folder} holds no rankings yet; label pictures with python -m dalle_ppo.label first"
        )
    notes, given = [], len(answers)
    there = {key: store.image_path(key).is_file() for key in {k for a in answers for k in a.images}}
    answers = [answer for answer in answers if all(there[key] for key in answer.images)]
    if len(answers) < given:
        gone = sum(not known for known in there.values())
        notes.append(f"{given - len(answers)} of {given} answers left out: {gone} picture files are gone")
    for rater in _one_place_raters(answers):
        kept = [answer for answer in answers if answer.rater != rater]
        notes.append(
            f"{len(answers) - len(kept)} answers of {rater} left out: all pick one position, whatever it "
            "shows"
        )
        answers = kept
    if not answers:
        raise ValueError(f"{store.folder} holds nothing to learn from: {'; '.join(notes)}")
    notes += _contradictions(answers)
    text = "\n".join(json.dumps(asdict(answer), sort_keys=True) for answer in answers)
    raters = dict(Counter(answer.rater for answer in answers))
    return Found(tuple(answers), tuple(notes), hashlib.sha256(text.encode()).hexdigest(), raters)


def as_ranking(answer: Answer) -> Answer | None:
    """A ranking of different pictures; of ratings, the order alone counts. None if there are no two."""
    if answer.kind == "rating":
        order = sorted(set(answer.ratings), reverse=True)
        ranks = tuple(order.index(rating) + 1 for rating in answer.ratings)
        answer = replace(answer, kind="ranking", ranks=ranks, ratings=None)
    if answer.kind != "ranking":
        return None
    # A policy may draw the same picture twice in a set; its first place counts.
    first = sorted({key: answer.images.index(key) for key in answer.images}.values())
    if len(first) < 2:
        return None
    images, ranks = (tuple(given[place] for place in first) for given in (answer.images, answer.ranks))
    return replace(answer, images=images, ranks=ranks, harm=None)


def _one_place_raters(answers: Sequence[Answer]) -> list[str]:
    places: dict[str, list[int | None]] = {}
    for answer in answers:
        best = [place for place, rank in enumerate(answer.ranks) if rank == min(answer.ranks)]
        places.setdefault(answer.rater, []).append(best[0] if len(best) == 1 else None)
    return [
        rater
        for rater, named in sorted(places.items())
        if len(named) >= ONE_PLACE and len(set(named)) == 1 and named[0] is not None
    ]


def _contradictions(answers: Sequence[Answer]) -> list[str]:
    """A note on pairs that were judged both ways: no model can be right about both."""
    votes: Counter[tuple[str, str]] = Counter((w, loser) for _, w, loser in Store.pairs(answers))
    both = {pair for pair in votes if pair[::-1] in votes and pair[0] < pair[1]}
    if not both:
        return []
    lost = sum(min(votes[pair], votes[pair[::-1]]) for pair in both)
    best = 1 - lost / votes.total()
    return [
        f"{len(both)} pairs of pictures were judged both ways: no model can agree with more than {best:.0%}"
    ]


def part_of(caption: str) -> str:
    """The part that a caption belongs to, by its hash: it stays there, however many answers come later."""
    point = int.from_bytes(hashlib.sha256(f"part|{caption}".encode()).digest()[:8], "big") / 2**64
    if point < SHARES["test"]:
        return "test"
    return "validation" if point < SHARES["test"] + SHARES["validation"] else "fit"


def split(rankings: Rankings) -> dict[str, Rankings]:
    """The rankings of each part, by name.

    Raises:
        ValueError: a part has too few captions with a decided pair.
    """
    where: dict[str, list[int]] = {name: [] for name in SHARES}
    for row, caption in enumerate(rankings.captions):
        where[part_of(caption)].append(row)
    parts = {name: rankings.rows(rows) for name, rows in where.items()}
    for name, part in parts.items():
        decided = len({part.captions[i] for i in part.pairs()[2]})
        if decided < MIN_CAPTIONS:
            raise ValueError(
                f"the answers are about {len(set(rankings.captions))} captions, of which {SHARES[name]:.0%} "
                f"are for {name}: {decided} with a decided pair, but {MIN_CAPTIONS} are needed; label more"
            )
    return parts


def embed(store: Store, answers: Sequence[Answer], clip: ClipScorer) -> tuple[Rankings, list[str]]:
    """Embeds the pictures of answers with their captions.

    Args:
        store: has the pictures.
        answers: rankings.
        clip: a frozen CLIP.

    Returns:
        The rankings, and a note on pictures that could not be read, whose answers are left out.

    Raises:
        ValueError: no answer is left.
    """
    keys = sorted({key for answer in answers for key in answer.images})
    images, unreadable = image_embeddings(store, keys, clip)
    usable = [answer for answer in answers if all(key in images for key in answer.images)]
    notes = []
    if unreadable:
        notes.append(f"{len(answers) - len(usable)} answers left out: {unreadable} pictures cannot be read")
    if not usable:
        raise ValueError(f"{store.folder} holds nothing to learn from: {'; '.join(notes)}")
    captions = sorted({answer.caption for answer in usable})
    texts = dict(zip(captions, clip.embed_texts(captions).cpu(), strict=True))
    shown = sorted({(key, answer.caption) for answer in usable for key in answer.images})
    row = {pair: i for i, pair in enumerate(shown)}
    width = max(len(answer.images) for answer in usable)
    index, ranks = torch.zeros(2, len(usable), width, dtype=torch.int64)
    for i, answer in enumerate(usable):
        n = len(answer.images)
        index[i, :n] = torch.tensor([row[key, answer.caption] for key in answer.images])
        ranks[i, :n] = torch.tensor(answer.ranks)
    both = features(torch.stack([images[k] for k, _ in shown]), torch.stack([texts[c] for _, c in shown]))
    return Rankings(both, index, ranks, tuple(answer.caption for answer in usable)), notes


def image_embeddings(store: Store, keys: list[str], clip: ClipScorer) -> tuple[dict[str, Tensor], int]:
    """The embedding of each picture that can be read, by its key, and how many cannot be read.

    Args:
        store: has the pictures.
        keys: of the pictures.
        clip: a frozen CLIP.
    """
    names = [store.image_path(key).relative_to(store.folder).as_posix() for key in keys]
    found, unreadable = {}, 0
    for batch in embed_images(store.folder, names, clip, BATCH):
        unreadable += len(batch.unreadable)
        for name, embedding in zip(batch.names, batch.embeddings, strict=True):
            found[name.rpartition("/")[2].removesuffix(".png")] = torch.from_numpy(embedding)
    return found, unreadable
