"""DPOK: the policy gradient with a value function and the exact KL, on new and replayed images.

The loss of a token is `-min(ratio, max_ratio) * advantage * log pi`, with no gradient through the ratio,
which compares the policy now with the one that drew the image. On new images, before the first step, that is
the policy gradient. On replayed ones it is biased in three ways: the tokens before it come from the old
policy, those after it, which the score depends on, do too, and large ratios are truncated. The product of the
ratios of all tokens would be unbiased, but it explodes: where one token's log-ratio has a deviation of only
0.2, that of 256 tokens has one of 3.2. The critic learns from replayed images as well, and so lags behind.

Source: https://arxiv.org/abs/2305.16381 algorithm 1 and section 4.2 (Fan et al.);
    https://github.com/google-research/google-research/tree/master/dpok, whose buffer holds the latest 1 000
    denoising steps (here it is counted in images), and which clips the ratio at 1e-4 around 1, whatever the
    sign of the advantage: outside, a step has no gradient.
"""

from dalle_ppo.config.objectives.dpok import Settings
from dalle_ppo.models.family import TokenScores
from dalle_ppo.rl.losses import PolicyLoss, truncated_loss
from dalle_ppo.rl.records import Experience
from dalle_ppo.training.objective import Objective


def loss(scores: TokenScores, rows: Experience, settings: Settings) -> PolicyLoss:
    """The truncated importance-weighted policy gradient for some rows, per token [b, T]."""
    return truncated_loss(scores.log_probs, rows.old_log_probs, rows.advantages, max_ratio=settings.max_ratio)


OBJECTIVE = Objective(loss, replays=True)
