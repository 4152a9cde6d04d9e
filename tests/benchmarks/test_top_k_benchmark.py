"""benchmarks/top_k.py draws as people do: given the same noise, the package draws what training draws."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scripts import load_script

from dalle_ppo.build.models import load_model
from dalle_ppo.models.policy_settings import PolicySettings
from dalle_ppo.rl.noise import noise_keys

SETTINGS = PolicySettings(guidance=1.5, temperature=4.0, top_k=16)
CAPTIONS = ["a red boat on a blue background", "two yellow stars"]


@pytest.fixture(scope="module")
def bench():
    return load_script(Path(__file__).parents[2] / "benchmarks" / "top_k.py")


@torch.no_grad()
def test_given_the_same_noise_the_package_draws_what_training_draws(bench):
    model = load_model("builtin", torch.device("cpu"))
    family = replace(model.family(SETTINGS), stores_kept=True)
    keys = noise_keys(0, "rollout", 0, CAPTIONS, [0] * len(CAPTIONS))
    ours = family.draw(model.decoder, family.read(CAPTIONS)[0], keys)
    assert -ours.log_probs.mean() > 0.3, "the draw must matter"
    theirs = bench.PackageSampler(model, model.decoder, SETTINGS).draw(CAPTIONS, keys)
    assert torch.equal(theirs, ours.tokens)


def test_the_difference_is_over_captions_that_both_have(bench):
    before, after = np.array([0.0, 0.5, np.nan, 1.0]), np.array([0.5, 0.5, 1.0, 1.0])
    # Differences of 50, 0 and 0 points: mean 16.7, standard error 28.87 / sqrt(3).
    assert bench.change(before, after) == "+16.7 [-16.0, +49.3]"
    assert bench.share(before) == "50.0 %"
