"""KL-regularised supervised fine-tuning, the baseline of DPOK: the likelihood of images times their scores.

Form `data`: -(r + gamma) * log pi. The second part is the likelihood of everything that the reference draws:
the KL of the reference from the policy, up to a constant. Form `output`: -r * log pi + gamma * KL(pi, ref) of
each token's distribution. Scores r are normalised and counted from the lowest of the round, because a
negative weight could lower a likelihood without bound. Counting from elsewhere is another gamma of form
`data`.

Source: https://arxiv.org/abs/2305.16381, its analysis of supervised fine-tuning with a KL, for denoising
    steps; tokens take their place.
"""

from dataclasses import replace

from torch import Tensor

from dalle_ppo.config.objectives.dpok_sft import Settings
from dalle_ppo.config.settings import Config
from dalle_ppo.models.family import TokenScores
from dalle_ppo.rl.losses import PolicyLoss
from dalle_ppo.rl.records import Experience
from dalle_ppo.rl.weights import effective_count
from dalle_ppo.training.credit import CreditState
from dalle_ppo.training.objective import Objective
from dalle_ppo.training.weighing import Numbers, weighed, weighed_likelihood


def weigh(scores: Tensor, caption_index: Tensor, config: Config) -> tuple[Tensor, Numbers]:
    """Weights [B]: scores counted from the lowest, plus gamma in form `data`."""
    settings = config.objective_settings
    weights = scores - scores.min() + (settings.gamma if settings.form == "data" else 0.0)
    return weights, {"effective_images": effective_count(weights)}


def credit(experience: Experience, config: Config, state: CreditState) -> tuple[Experience, CreditState]:
    """Weights in place of advantages."""
    return weighed(weigh, experience, config, state)


def loss(scores: TokenScores, rows: Experience, settings: Settings) -> PolicyLoss:
    """The weighed likelihood, in form `output` with the KL, per token [b, T]."""
    policy = weighed_likelihood(scores, rows, settings)
    if settings.form == "data":
        return policy
    return replace(policy, loss=policy.loss + settings.gamma * scores.kl)


def draws_from_reference(settings: Settings) -> bool:
    return settings.images_from == "reference"


def needs_kl(settings: Settings) -> bool:
    return settings.form == "output"


OBJECTIVE = Objective(loss, credit, draws_from_reference=draws_from_reference, needs_kl=needs_kl)
