"""What raters would prefer, by a reward model; its settings are in `config/terms/preference.py`.

    value = mean - beta * spread

over the scores of an ensemble's members. The penalty keeps a policy from pictures that the members judge
differently, because they have seen nothing like them.

Source: Coste et al. 2023, https://arxiv.org/abs/2310.02743 (uncertainty-weighted optimisation, with the
variance in place of the standard deviation).
"""

from torch import Tensor

from dalle_ppo.models.heads.binding import bind_clip
from dalle_ppo.models.heads.preference import load_preference
from dalle_ppo.rewards.base import Reward, RewardResult
from dalle_ppo.rewards.shared import Shared


def load(options, shared: Shared) -> Reward:
    """Loads the reward model.

    Args:
        options: the term's settings.
        shared: hands out CLIP and its embeddings.

    Raises:
        ValueError: the file is no reward model, or it was made for another CLIP.
    """
    head = load_preference(shared.detector_file(options.reward_model)).to(shared.device)
    bind_clip(head, shared.clip)

    def reward(images: Tensor, captions: list[str]) -> RewardResult:
        mean, spread = head(shared.image_embeddings(), shared.text_embeddings())
        value = mean - options.beta * spread
        return RewardResult(value, {"preference_mean": mean, "preference_spread": spread})

    return reward
