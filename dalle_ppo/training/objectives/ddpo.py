"""DDPO-IS: the clipped surrogate, with each score normalised by earlier scores of its caption.

DDPO's clip range of 1e-4 belongs to log-probs that are means over a latent image: see the setting.

Source: https://arxiv.org/abs/2305.13301 section 4.3 and appendix (Black et al.).
"""

from dalle_ppo.config.objectives.ddpo import Settings
from dalle_ppo.models.family import TokenScores
from dalle_ppo.rl.losses import PolicyLoss, ppo_loss
from dalle_ppo.rl.records import Experience
from dalle_ppo.training.objective import Objective


def loss(scores: TokenScores, rows: Experience, settings: Settings) -> PolicyLoss:
    """The clipped surrogate for some rows, per token [b, T]."""
    return ppo_loss(scores.log_probs, rows.old_log_probs, rows.advantages, clip_range=settings.clip_range)


OBJECTIVE = Objective(loss)
