"""GRPO: the clipped surrogate, with each score normalised within its caption.

DAPO, Dr. GRPO and GSPO are settings of it. Every image has the same number of tokens, so the mean over tokens
is the mean over images, and the length bias that Dr. GRPO removes from the loss is not there.

Source: https://arxiv.org/abs/2402.03300 eq. 3 (GRPO); https://arxiv.org/abs/2503.20783 section 3.2 (without
    the deviation); https://arxiv.org/abs/2503.14476 sections 3.1 and 3.2 (upper clip range, groups without
    spread); https://arxiv.org/abs/2507.18071 eq. 5 to 7 (the ratio of whole sequences).
"""

from dalle_ppo.config.objectives.grpo import Settings
from dalle_ppo.config.settings import Config
from dalle_ppo.models.family import TokenScores
from dalle_ppo.rl.advantages import has_spread
from dalle_ppo.rl.losses import PolicyLoss, ppo_loss
from dalle_ppo.rl.records import Experience
from dalle_ppo.training.credit import ESTIMATORS, GROUP_CENTRED, CreditState, credit
from dalle_ppo.training.objective import Objective


def loss(scores: TokenScores, rows: Experience, settings: Settings) -> PolicyLoss:
    """The clipped surrogate for some rows, per token [b, T]."""
    low, high = settings.clip_ranges
    return ppo_loss(
        scores.log_probs,
        rows.old_log_probs,
        rows.advantages,
        clip_range=low,
        clip_range_high=high,
        of_images=settings.ratio == "image",
    )


def group_credit(
    experience: Experience, config: Config, state: CreditState
) -> tuple[Experience, CreditState]:
    """Credit within each caption, in units of its deviation unless the settings say otherwise."""
    estimator = ESTIMATORS["group"] if config.objective_settings.divide_by_std else GROUP_CENTRED
    return credit(experience, config, state, estimator=estimator)


def with_spread(experience: Experience, config: Config) -> Experience:
    """The captions whose images differ in score; all of them if none does, as the KL is then all there is."""
    kept = has_spread(experience.scores, experience.caption_index)
    if not config.objective_settings.leave_out_equal or kept.all() or not kept.any():
        return experience
    return experience.select(kept.nonzero()[:, 0])


OBJECTIVE = Objective(loss, credit=group_credit, select=with_spread)
