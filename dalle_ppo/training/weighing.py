"""Credit of objectives that weigh whole images by their scores, without advantages."""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from dalle_ppo.config.settings import Config
from dalle_ppo.models.family import TokenScores
from dalle_ppo.rl.losses import PolicyLoss, score_function_loss
from dalle_ppo.rl.records import Experience
from dalle_ppo.training.credit import CreditState

Numbers = dict[str, float]
Weigh = Callable[[Tensor, Tensor, Config], tuple[Tensor, Numbers]]
"""`(scores [B], caption_index [B], all settings) -> weights [B], numbers worth logging`."""


def weighed(
    weigh: Weigh, experience: Experience, config: Config, state: CreditState
) -> tuple[Experience, CreditState]:
    """Gives every token its image's weight, in place of an advantage.

    Args:
        weigh: makes weights of the scores, divided by their running standard deviation unless
            `credit.normalise_scores` is false.
        experience: with scores and log-probs.
        config: all settings.
        state: state after the previous iterations.

    Returns:
        The experience with weights as advantages [B, T]; the state for the next iteration.
    """
    moments = state.score_moments.update(experience.scores)
    scale = moments.std if config.credit.normalise_scores else 1.0
    weights, numbers = weigh(experience.scores / scale, experience.caption_index, config)
    filled = replace(
        experience,
        advantages=weights[:, None].expand_as(experience.old_log_probs).contiguous(),
        reward_scale=scale,
        credit_numbers=numbers,
    )
    return filled, replace(state, score_moments=moments)


def weighed_likelihood(scores: TokenScores, rows: Experience, settings: object) -> PolicyLoss:
    """`-weight * log pi` per token [b, T], with the weights that `weighed` gave.

    The weights do not depend on the current policy, so unlike the policy gradient, which has the same form,
    it stays right for any number of steps on a batch.
    """
    return score_function_loss(scores.log_probs, rows.advantages, old_log_probs=rows.old_log_probs)


def with_weight(experience: Experience, config: Config) -> Experience:
    """The images that have a weight; all of them if none has, which then learns nothing."""
    rows = experience.advantages[:, 0].nonzero()[:, 0]
    return experience.select(rows) if len(rows) else experience
