"""Without `update.recompute_log_probs`, scoring takes the policy's states from the sampler."""

import pytest
import torch
from tiny_trainer import TINY_CONFIG, NoWriter, changed, tiny_trainer

from dalle_ppo.base.team import Team
from dalle_ppo.models.dalle import sampling
from dalle_ppo.training.sharing import reuses_states
from dalle_ppo.training.trainer import Trainer

COLUMNS = ("old_log_probs", "ref_log_probs", "kl", "entropy", "values")


def scored(monkeypatch, **settings):
    """The second batch of a run after its scoring, and how many forward passes of decoders that took."""
    trainer = tiny_trainer(changed(TINY_CONFIG, {"update.recompute_log_probs": True}))
    trainer.iterate(NoWriter())
    trainer.config = changed(TINY_CONFIG, settings)
    passes, of_decoders = [], sampling.BartDecoder.forward
    drawn = trainer.collect()
    with monkeypatch.context() as patch:
        patch.setattr(
            sampling.BartDecoder, "forward", lambda *args: passes.append(args[0]) or of_decoders(*args)
        )
        return Trainer.score_passes(trainer, drawn), passes, trainer


def test_scores_are_the_same_without_the_policys_pass(monkeypatch):
    expected, passes, trainer = scored(monkeypatch)
    assert trainer.actor.module in passes
    found, passes, trainer = scored(monkeypatch, **{"update.recompute_log_probs": False})
    assert passes and trainer.actor.module not in passes
    assert found.kl.sum() > 1e-3, "the policy has moved"
    for name in COLUMNS:
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-5)
    assert (found.old_log_probs - found.sampler_log_probs).abs().max() < 1e-6


@pytest.mark.parametrize(
    "settings", [{"rollout.dtype": "bfloat16"}, {"update.dtype": "bfloat16"}, {}], ids=str
)
def test_states_of_another_precision_are_not_taken(settings):
    config = changed(TINY_CONFIG, {"update.recompute_log_probs": False})
    assert reuses_states(config, Team()) and not reuses_states(config, Team(0, 2))
    assert not reuses_states(changed(config, settings or {"update.recompute_log_probs": True}), Team())
