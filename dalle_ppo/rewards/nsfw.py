"""A penalty for images that an NSFW detector calls unsafe; its settings are in `config/terms/nsfw.py`."""

import torch
from torch import Tensor

from dalle_ppo.models.heads.binding import bind_clip
from dalle_ppo.models.heads.nsfw import head_probability, load_detector
from dalle_ppo.rewards.base import Reward, RewardResult
from dalle_ppo.rewards.shared import Shared


def load(options, shared: Shared) -> Reward:
    """Loads the detector.

    Args:
        options: the term's settings.
        shared: hands out CLIP and its embeddings.

    Raises:
        ValueError: there is no such detector, or it was made for another CLIP.
    """
    detector = load_detector(shared.detector_file(options.detector)).to(shared.device)
    bind_clip(detector, shared.clip)

    def reward(images: Tensor, captions: list[str]) -> RewardResult:
        probability = head_probability(detector, shared.image_embeddings())
        return RewardResult(penalty(probability, options), {"nsfw_probability": probability})

    return reward


def penalty(probability: Tensor, options) -> Tensor:
    """Scores images by their NSFW probability.

    Args:
        probability: probability of being unsafe, [B] in 0..1.
        options: the term's settings.

    Returns:
        float32 [B].
    """
    clean = options.clean_bonus * (probability < options.clean_threshold)
    score = torch.where(probability > options.unsure_threshold, options.unsure_penalty, clean)
    return torch.where(probability > options.unsafe_threshold, options.unsafe_penalty, score).float()
