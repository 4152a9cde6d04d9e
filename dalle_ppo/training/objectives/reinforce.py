"""REINFORCE, which DDPO calls DDPO-SF: the plain policy gradient, for one step on each batch.

Source: Williams 1992; https://arxiv.org/abs/2305.13301 section 4.2.
"""

from dalle_ppo.config.objectives.reinforce import Settings
from dalle_ppo.models.family import TokenScores
from dalle_ppo.rl.losses import PolicyLoss, score_function_loss
from dalle_ppo.rl.records import Experience
from dalle_ppo.training.objective import Objective


def loss(scores: TokenScores, rows: Experience, settings: Settings) -> PolicyLoss:
    """The score-function loss for some rows, per token [b, T]."""
    return score_function_loss(scores.log_probs, rows.advantages, old_log_probs=rows.old_log_probs)


OBJECTIVE = Objective(loss)
