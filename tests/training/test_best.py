"""Which checkpoint is the best, and which metrics may say so."""

import math
import re
import warnings

import pytest
from stopped_runs import trainer_of
from tiny_trainer import TINY_CONFIG, NoWriter, changed, tiny_trainer

from dalle_ppo.config.reward import RewardConfig
from dalle_ppo.config.settings import Config
from dalle_ppo.training.best import Best, check_metric, looked_for


def test_the_best_is_that_of_the_mean_since_the_checkpoint_before():
    best = Best()
    for iteration, value in enumerate([0.0, 5.0, 4.0, 2.0, None, 9.0], start=1):
        best = best.after({"reward_mean": value}, "reward_mean")
        if iteration % 2 == 0:
            best = best.at_checkpoint(iteration, "reward_mean")
            expected = {2: (2, 2.5), 4: (4, 3.0), 6: (6, 9.0)}[iteration]
            assert (best.iteration, best.value) == expected
    assert Best().after({}, None).at_checkpoint(2, None) == Best()


def test_what_is_not_finite_is_missing():
    """One NaN as the first value blocked all later ones: nothing compares as better than it."""
    best = Best()
    for iteration, value in enumerate([math.nan, -math.inf, 3.0, math.nan, 5.0, 4.0], start=1):
        best = best.after({"reward_mean": value}, "reward_mean").at_checkpoint(iteration, "reward_mean")
        assert best.iteration == [None, None, 3, 3, 5, 5][iteration - 1]
    assert Best(2, math.nan, (1.0,)).at_checkpoint(4, "reward_mean") == Best(4, 1.0), "an old checkpoint's"


VIOLENCE = {"reward.terms": [{"name": "violence"}, {"name": "mine:bright"}]}


@pytest.mark.parametrize(
    "name, near",
    [
        ("reward_meen", "reward_mean"),
        ("reward/violence", "reward/violence_score"),
        ("reward/aesthetic_score", "reward/violence_score"),
        ("reward/nsfw_probability", "nsfw_probability_mean"),  # which has a name of its own
        ("term_scale/nsfw", None),
        ("judge/aesthetic", None),
        ("unsafe_rate/", "unsafe_rate"),
    ],
)
def test_a_metric_that_no_iteration_has_is_refused(name, near):
    hint = "docs/metrics" if near is None else f"did you mean {near}?"
    with pytest.raises(ValueError, match=f"^keep_best is {name}; .*; {re.escape(hint)}"):
        check_metric(name, changed(TINY_CONFIG, VIOLENCE))


def test_a_metric_of_a_term_needs_the_term(tmp_path):
    config = Config(reward=RewardConfig(terms=[{"name": "aesthetic"}]))
    for name in ("unsafe_rate", "unsafe_rate/NSFW", "clip_similarity", "share_above_lower"):
        check_metric(name, TINY_CONFIG)
        with pytest.raises(ValueError, match=r"need that term in reward\.terms"):
            check_metric(name, config)
    for name in (None, "reward_mean", "reward_mean/NSFW", "reward/aesthetic_score", "captions/drawn"):
        check_metric(name, config)
    for name in ("reward/mine:bright", "reward/mine:bright/red"):
        check_metric(name, changed(TINY_CONFIG, VIOLENCE))
    check_metric("term_scale/nsfw", changed(TINY_CONFIG, {"reward.normalise": "per_term"}))
    with pytest.raises(ValueError, match=r"keep_best is reward_meen"):
        trainer_of(tmp_path, keep_best="reward_meen")


def test_every_metric_of_an_iteration_may_be_named():
    trainer = tiny_trainer(changed(TINY_CONFIG, {"reward.normalise": "per_term"}))
    for name in trainer.iterate(NoWriter()):
        check_metric(name, trainer.config)


def test_a_metric_that_iterations_lack_is_warned_of_once_the_first_is_not_left_out():
    name, numbers = "unsafe_rate/NSWF", {"iteration": 7, "reward_mean": 1.0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not looked_for(name, {"iteration": 6, "batches_left_out": 1})
        assert looked_for(None, numbers) and looked_for("reward_mean", numbers)
    with pytest.warns(UserWarning, match=r"^keep_best is unsafe_rate/NSWF, which iteration 7 does not"):
        assert looked_for(name, numbers)


def test_a_run_says_once_that_no_checkpoint_will_be_the_best(tmp_path):
    trainer = trainer_of(tmp_path, keep_best="unsafe_rate/NSWF")
    with pytest.warns(UserWarning, match="unsafe_rate/NSWF") as seen:
        trainer.run()
    assert sum("keep_best" in str(warning.message) for warning in seen) == 1
