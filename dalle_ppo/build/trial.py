"""Tries the reward on two images before a run, so that a mistake is found in seconds and leaves no folder."""

import random
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from dalle_ppo.base.halving import Halving
from dalle_ppo.captions.source import CaptionRecord
from dalle_ppo.policy.rollout import as_float
from dalle_ppo.rewards.base import Term, check_result, metadata_of
from dalle_ppo.rewards.in_parts import score_in_parts
from dalle_ppo.training.trainer import Trainer

NUM_IMAGES = 2


def try_reward(trainer: Trainer) -> str:
    """Scores two images of random codes with captions of the run; global random numbers stay as they were.

    This calls each term once more: a term that keeps statistics of its own counts two extra images.

    Args:
        trainer: ready to run; its reward is tried.

    Returns:
        One line for the user: what was tried, and how long it took.

    Raises:
        ValueError: a term raised, or returned something unusable; with `reward.bad_result: skip` that is a
            warning.
    """
    terms = trainer.reward.terms
    names = ", ".join(term.label for term in terms)
    records = trial_records(trainer, terms)
    captions = [record.text for record in records]
    metadata = metadata_of([record.tag for record in records], [record.id for record in records])
    started = time.perf_counter()
    with random_state_kept(trainer.family.device):
        images = as_float(random_images(trainer))
        try:
            result = score_in_parts(trainer.reward, images, captions, metadata, Halving())
            check_result(result, NUM_IMAGES, "of this run")
        except ValueError as error:
            message = f"{error}; found on {NUM_IMAGES} images of random codes before training"
            if trainer.config.reward.bad_result == "stop":
                raise ValueError(message) from error
            warnings.warn(message, stacklevel=2)
            return f"reward {names}: failed on two images, and batches on which it fails will be left out"
    return f"reward {names}: tried on two images in {time.perf_counter() - started:.1f} s"


def trial_records(trainer: Trainer, terms: Sequence[Term]) -> list[CaptionRecord]:
    """Two captions of the run on which these terms can be tried."""
    records = list(trainer.sample_captions)
    if any(term.images_per_caption > 1 for term in terms):
        records = records[:1]  # a term that compares the images of a caption must find some to compare
    return (records * NUM_IMAGES)[:NUM_IMAGES]


def random_images(trainer: Trainer) -> Tensor:
    """Images of the run's size, uint8 [2, 3, H, W]; decoding random codes is much faster than sampling."""
    sizes = trainer.networks.reference.config
    generator = torch.Generator().manual_seed(trainer.config.seed)
    tokens = torch.randint(sizes.num_codes, (NUM_IMAGES, sizes.num_image_tokens), generator=generator)
    return trainer.family.decode(tokens)


@contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    """Leaves the global random numbers of Python, NumPy and torch as they were."""
    kept = random.getstate(), np.random.get_state()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(kept[0])
            np.random.set_state(kept[1])
