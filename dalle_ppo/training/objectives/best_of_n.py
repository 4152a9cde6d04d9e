"""Best of n: the likelihood of the best of the n images of each caption.

With enough steps the policy draws what the best of n images of the old one looks like, without drawing n.

Source: RAFT with k = n, https://arxiv.org/abs/2304.06767.
"""

from torch import Tensor

from dalle_ppo.config.settings import Config
from dalle_ppo.rl.records import Experience
from dalle_ppo.rl.weights import best_and_worst, effective_count
from dalle_ppo.training.credit import CreditState
from dalle_ppo.training.objective import Objective
from dalle_ppo.training.weighing import Numbers, weighed, weighed_likelihood, with_weight


def weigh(scores: Tensor, caption_index: Tensor, config: Config) -> tuple[Tensor, Numbers]:
    """Weights [B]: 1 for the best image of each caption whose images differ in score; how many these are."""
    weights = (best_and_worst(scores, caption_index) > 0).to(scores.dtype)
    return weights, {"effective_images": effective_count(weights)}


def credit(experience: Experience, config: Config, state: CreditState) -> tuple[Experience, CreditState]:
    """Weights in place of advantages."""
    return weighed(weigh, experience, config, state)


OBJECTIVE = Objective(weighed_likelihood, credit, select=with_weight)
