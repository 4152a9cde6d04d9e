"""RLOO: the plain policy gradient, where the other images of a caption are the baseline.

Source: https://arxiv.org/abs/2402.14740 section 2 (Ahmadian et al.); Kool et al. 2019.
"""

from dalle_ppo.config.objectives.rloo import Settings
from dalle_ppo.models.family import TokenScores
from dalle_ppo.rl.losses import PolicyLoss, score_function_loss
from dalle_ppo.rl.records import Experience
from dalle_ppo.training.objective import Objective


def loss(scores: TokenScores, rows: Experience, settings: Settings) -> PolicyLoss:
    """The score-function loss for some rows, per token [b, T]."""
    return score_function_loss(scores.log_probs, rows.advantages, old_log_probs=rows.old_log_probs)


OBJECTIVE = Objective(loss)
