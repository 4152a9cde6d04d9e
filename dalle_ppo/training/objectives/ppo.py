"""PPO: the clipped surrogate, with credit from a separate critic unless `credit.advantage` says otherwise.

Source: https://arxiv.org/abs/1707.06347 eq. 7.
"""

from dalle_ppo.config.objectives.ppo import Settings
from dalle_ppo.models.family import TokenScores
from dalle_ppo.rl.losses import PolicyLoss, ppo_loss
from dalle_ppo.rl.records import Experience
from dalle_ppo.training.objective import Objective


def loss(scores: TokenScores, rows: Experience, settings: Settings) -> PolicyLoss:
    """PPO's loss for some rows, per token [b, T]."""
    return ppo_loss(
        scores.log_probs,
        rows.old_log_probs,
        rows.advantages,
        clip_range=settings.clip_range,
        clip_range_high=settings.clip_range_high,
        dual_clip=settings.dual_clip,
    )


OBJECTIVE = Objective(loss)
