"""Online DPO: the best of each caption's images is preferred to the worst, in pairs drawn from the policy.

The update learns from the pairs alone, and its loss is their mean; captions whose images score the same are
left out. The log-ratio of an image is the sum over its tokens.

Source: https://arxiv.org/abs/2305.18290 eq. 7; https://arxiv.org/abs/2402.04792 (online).
"""

from dataclasses import replace

from torch import Tensor

from dalle_ppo.config.objectives.online_dpo import Settings
from dalle_ppo.config.settings import Config
from dalle_ppo.models.family import TokenScores
from dalle_ppo.rl.losses import PolicyLoss
from dalle_ppo.rl.records import Experience
from dalle_ppo.rl.weights import best_and_worst, preference_loss
from dalle_ppo.training.credit import CreditState
from dalle_ppo.training.objective import Objective
from dalle_ppo.training.weighing import Numbers, weighed, weighed_likelihood, with_weight


def weigh(scores: Tensor, caption_index: Tensor, config: Config) -> tuple[Tensor, Numbers]:
    """Sides [B]: 1 for the best image of each caption, -1 for the worst, 0 for those that are left out."""
    return best_and_worst(scores, caption_index), {}


def credit(experience: Experience, config: Config, state: CreditState) -> tuple[Experience, CreditState]:
    """Sides in place of advantages."""
    return weighed(weigh, experience, config, state)


def loss(scores: TokenScores, rows: Experience, settings: Settings) -> PolicyLoss:
    """The loss of a caption's pair at every token of its images, [b, T]."""
    log_ratios = (scores.log_probs - rows.ref_log_probs).sum(dim=1)
    losses = preference_loss(log_ratios, rows.advantages[:, 0], rows.caption_index, settings.beta)
    to_log = weighed_likelihood(scores, rows, settings)
    return replace(to_log, loss=losses[:, None].expand_as(scores.log_probs))


OBJECTIVE = Objective(loss, credit, compares_images=True, select=with_weight)
