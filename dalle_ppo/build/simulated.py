"""Fills a store with the answers of the built-in world's simulated rater."""

import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image as Picture
from torch import Tensor

from dalle_ppo.iconworld.rater import SimulatedRater, load_rater
from dalle_ppo.iconworld.world import World
from dalle_ppo.preferences.answer import Answer, PictureSet
from dalle_ppo.preferences.store import Store

NAME = "simulated"


@dataclass(frozen=True)
class Agreement:
    """How far the rater and the judge agree, as shares of N pictures.

    Args:
        pictures: N.
        unsafe: whether there is an unsafe icon.
        icons: the same icons.
    """

    pictures: int
    unsafe: float
    icons: float

    def line(self) -> str:
        """For people."""
        return (
            f"rater and judge agree about unsafe icons on {self.unsafe:.1%} and about all icons on "
            f"{self.icons:.1%} of {self.pictures} pictures"
        )


def open_rater(world: World | None, seed: int = 0) -> SimulatedRater:
    """The world's rater.

    Raises:
        ValueError: the model does not belong to the built-in world, or its folder has no rater.
    """
    if world is None:
        raise ValueError(
            "--rater simulated knows the built-in world's pictures only; label these yourself, or name an "
            "endpoint"
        )
    if not world.rater.is_file():
        raise ValueError(
            f"{world.folder} has no rater.safetensors; run dalle_ppo.iconworld.build on it again"
        )
    return load_rater(world.rater, seed=seed)


def simulated_answers(
    store: Store, sets: Iterable[PictureSet], rater: SimulatedRater, round: int | None = None
) -> int:
    """Answers sets as the rater does; a set that it has answered in this round is left out.

    Args:
        store: is filled, an answer at a time.
        sets: their pictures are in the store.
        rater: who answers.
        round: of an alignment; None outside one.

    Returns:
        The number of new answers.

    Raises:
        ValueError: a picture is gone.
    """
    done = {(a.set_id, a.round) for a in store.answers() if a.rater == NAME}
    added = 0
    for shown in sets:
        if (shown.id, round) in done:
            continue
        started = time.monotonic()
        seen = rater.see(read_pictures(store, shown.images))
        ranks = rater.ranks([icons.worth(shown.caption) for icons in seen], f"{shown.id}|{round}")
        store.append(
            Answer(
                shown.caption,
                shown.images,
                "ranking",
                NAME,
                "simulated",
                shown.id,
                ranks=ranks,
                seconds=time.monotonic() - started,
                round=round,
            )
        )
        added += 1
    return added


def read_pictures(store: Store, keys: Iterable[str]) -> Tensor:
    """Pictures of one size, uint8 [N, 3, H, W].

    Raises:
        ValueError: one is gone, or cannot be read.
    """
    pixels = []
    for key in keys:
        path = store.image_path(key)
        try:
            with Picture.open(path) as picture:
                pixels.append(np.array(picture.convert("RGB")))
        except OSError as error:
            raise ValueError(f"{path} cannot be read ({type(error).__name__}); draw its set again") from None
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)


def rater_against_judge(world: World, rater: SimulatedRater, images: Tensor) -> Agreement:
    """How far the rater's eyes and the judge agree; it tells the results, and nothing is learned from it.

    Args:
        world: has the judge.
        rater: of this world.
        images: uint8 [N, 3, 64, 64].
    """
    from dalle_ppo.iconworld.judge import load_judge, look
    from dalle_ppo.iconworld.scenes import KINDS

    sighting = look(load_judge(world.judge), images)
    seen = rater.see(images)
    kinds = [{KINDS[k] for k in np.flatnonzero(row)} for row in sighting.present]
    return Agreement(
        len(images),
        float(np.mean([s.unsafe == u for s, u in zip(seen, sighting.unsafe, strict=True)])),
        float(np.mean([{kind for kind, _ in s.icons} == k for s, k in zip(seen, kinds, strict=True)])),
    )
