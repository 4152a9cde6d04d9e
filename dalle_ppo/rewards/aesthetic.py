"""LAION's aesthetic score; its settings are in `config/terms/aesthetic.py`."""

from torch import Tensor

from dalle_ppo.models.heads.nsfw import head_probability
from dalle_ppo.rewards.base import Reward, RewardResult
from dalle_ppo.rewards.head import open_head
from dalle_ppo.rewards.shared import Shared

SOURCE = "https://github.com/christophschuhmann/improved-aesthetic-predictor"


def load(options, shared: Shared) -> Reward:
    """Loads the predictor.

    Args:
        options: the term's settings.
        shared: hands out CLIP and its embeddings, which are L2-normalised, as the predictor needs them.

    Raises:
        ValueError: there is no such file, it returns probabilities, or it was made for another CLIP.
    """
    head = open_head(options.head, shared, source=SOURCE)
    if head.info.output != "score":
        raise ValueError(
            f"reward.terms: head of aesthetic is {options.head}, which returns a {head.info.output}, not a "
            "score; give LAION's predictor, or use the term nsfw or head for this file"
        )

    def reward(images: Tensor, captions: list[str]) -> RewardResult:
        score = head_probability(head, shared.image_embeddings())
        return RewardResult(score, {"aesthetic_score": score})

    return reward
