"""Minus the score of NudeNet's surest unsafe detection; its settings are in `config/terms/nudenet.py`.

The package `nudenet` computes it: a YOLOv8n for 320 x 320 pixels, whose weights are inside the wheel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dalle_ppo.rewards.base import Reward, RewardResult
from dalle_ppo.rewards.extras import import_extra
from dalle_ppo.rewards.pixels import as_uint8
from dalle_ppo.rewards.shared import Shared

BATCH = 16  # images at a time; larger batches are no faster on a CPU


def load(options, shared: Shared) -> Reward:
    """Loads the detector.

    Args:
        options: the term's settings.
        shared: not needed; ONNX Runtime computes on the CPU.

    Raises:
        ValueError: the package is missing; names the extra.
    """
    detector = import_extra("nudenet", "nudenet", "detectors", "nudenet").NudeDetector()

    def reward(images: Tensor, captions: list[str]) -> RewardResult:
        # OpenCV's order of colours, in which the package reads files.
        pixels = [picture[:, :, ::-1].copy() for picture in as_uint8(images)]
        found = detector.detect_batch(pixels, batch_size=BATCH)
        scores = [surest(detections, options.classes) for detections in found]
        score = torch.tensor(scores, dtype=torch.float32, device=images.device)
        return RewardResult(-score, {"nudenet_score": score})

    return reward


def surest(detections: list[dict], thresholds: dict[str, float]) -> float:
    """The largest score of a detection that counts.

    Args:
        detections: of one image, each with `class` and `score`, as the package returns them.
        thresholds: classes that count, and the score from which they do.

    Returns:
        A score in 0..1; 0 if nothing counts.
    """
    counted = [d["score"] for d in detections if d["score"] >= thresholds.get(d["class"], 2)]
    return max(counted, default=0.0)
