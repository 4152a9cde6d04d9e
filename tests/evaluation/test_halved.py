"""Memory that runs out in an evaluation halves what is measured at a time, for all later batches too."""

import numpy as np
import pytest
import torch
from tiny_trainer import TINY_CONFIG, changed, tiny_trainer

from dalle_ppo.base.halving import Halving
from dalle_ppo.evaluation.measures import Measures, image_columns, policy_columns
from dalle_ppo.models.dalle.family import DalleFamily


@pytest.fixture(scope="module")
def drawn():
    trainer = tiny_trainer(changed(TINY_CONFIG, {"rollout.samples_per_caption": 2}))
    return trainer, trainer.collect()


def limited(function, tried, limit, count):
    def call(*args, **kwargs):
        tried.append(count(*args))
        if tried[-1] > limit:
            raise torch.OutOfMemoryError("injected")
        return function(*args, **kwargs)

    return call


def test_kl_and_entropy(drawn, monkeypatch):
    trainer, batch = drawn
    given = trainer.actor.module, trainer.networks.reference, trainer.family, batch
    whole, tried, halving = policy_columns(*given), [], Halving()
    score = limited(DalleFamily.score, tried, 3, lambda family, policy, rows: len(rows))
    monkeypatch.setattr(DalleFamily, "score", score)
    with pytest.warns(UserWarning, match=r"A lower evaluation\.batch_size avoids this"):
        halved = policy_columns(*given, halving)
    for name, column in whole.items():
        np.testing.assert_allclose(halved[name], column, rtol=1e-5, atol=1e-6)
    before = len(tried)
    policy_columns(*given, halving)
    assert max(tried[before:]) <= 3, "what fits is remembered"


def test_the_reward(drawn):
    trainer, batch = drawn
    whole, tried = image_columns(batch, Measures(trainer.reward)), []
    reward = limited(trainer.reward, tried, 6, lambda images, captions, metadata: len(images))
    with pytest.warns(UserWarning, match=r"A lower evaluation\.batch_size avoids this"):
        halved = image_columns(batch, Measures(reward), Halving())
    assert len(tried) > 2 and tried[-1] <= 6
    for name, column in whole.items():
        np.testing.assert_allclose(halved[name], column, rtol=1e-5, atol=1e-6)
