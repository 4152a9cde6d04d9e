"""Rules that several objectives have for settings of other sections."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dalle_ppo.config.settings import Config


def needs_advantage(config: "Config", advantage: str, why: str) -> None:
    """Refuses every other `credit.advantage`.

    Args:
        config: all settings.
        advantage: the one that belongs to the objective.
        why: ends the message.

    Raises:
        ValueError: it is another one.
    """
    given = config.credit.advantage
    if given != advantage:
        raise ValueError(
            f"credit.advantage is {given}; objective {config.objective} needs {advantage}: {why}. Leave "
            "credit.advantage out, or choose objective ppo"
        )


def needs_one_step(config: "Config") -> None:
    """Refuses more than one step per batch, for objectives without a ratio.

    Raises:
        ValueError: there is more than one.
    """
    if config.update.epochs > 1:
        raise ValueError(
            f"update.epochs is {config.update.epochs}; objective {config.objective} needs 1: after one step, "
            "the batch no longer comes from the current policy"
        )
    if config.minibatches > 1:
        raise ValueError(
            f"update.minibatch_size is {config.update.minibatch_size}; objective {config.objective} needs "
            "null, the whole batch: after one step, it no longer comes from the current policy"
        )
