"""Minus the violence score by LAION's directions; its settings are in `config/terms/violence.py`."""

from torch import Tensor

from dalle_ppo.models.heads.nsfw import head_probability
from dalle_ppo.rewards.base import Reward, RewardResult
from dalle_ppo.rewards.head import open_head
from dalle_ppo.rewards.shared import Shared

SOURCE = "https://github.com/LAION-AI/CLIP-based-NSFW-Detector"


def load(options, shared: Shared) -> Reward:
    """Loads the directions.

    Args:
        options: the term's settings.
        shared: hands out CLIP and its embeddings.

    Raises:
        ValueError: there is no such file, or it was made for another CLIP.
    """
    head = open_head(options.head, shared, source=SOURCE)

    def reward(images: Tensor, captions: list[str]) -> RewardResult:
        score = head_probability(head, shared.image_embeddings())
        return RewardResult(-score, {"violence_score": score})

    return reward
