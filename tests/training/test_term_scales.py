"""`reward.normalise: per_term` against NumPy, in a run, and across a resume."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_trainer import TINY_CONFIG, NoWriter, changed, tiny_trainer

from dalle_ppo.config.term import read_terms
from dalle_ppo.rl.advantages import RunningMoments
from dalle_ppo.runs.checkpoints import load_checkpoint
from dalle_ppo.training.progress import Progress
from dalle_ppo.training.term_scales import normalised_sum

TERMS = read_terms([{"name": "m:f", "weight": 3.0}, {"name": "m:g", "weight": -0.5, "only_if": "m:f > 0"}])
PER_TERM = {"reward.normalise": "per_term"}


def test_each_term_is_divided_by_the_spread_of_what_counts_of_it():
    rng = np.random.default_rng(0)
    moments, seen = {}, {"m:f": [], "m:g": []}
    for _ in range(3):
        f, g = rng.normal(5, 100, size=20), rng.normal(1, 0.01, size=20)
        counted = np.where(f > 0, g, np.nan)
        seen["m:f"] += list(f)
        seen["m:g"] += list(g[f > 0])
        values = {"m:f": torch.tensor(f), "m:g": torch.tensor(counted)}
        total, moments, metrics = normalised_sum(values, TERMS, moments)
        stds = {label: np.std(past) for label, past in seen.items()}
        expected = 3 * f / stds["m:f"] + np.where(f > 0, -0.5 * g / stds["m:g"], 0)
        assert np.allclose(total, expected)
        assert metrics["term_scale/m:g"] == pytest.approx(stds["m:g"])
        assert metrics["term_share/m:f"] == pytest.approx(3 * f.mean() / stds["m:f"])
    assert moments["m:g"].count == len(seen["m:g"]) < 60


def test_units_do_not_matter_any_more():
    f, g = torch.randn(2, 30, generator=torch.Generator().manual_seed(0))
    open_g = torch.where(f > 0, g, torch.nan)
    plain, _, _ = normalised_sum({"m:f": f, "m:g": open_g}, TERMS, {})
    scaled, _, _ = normalised_sum({"m:f": 1000 * f, "m:g": open_g / 1000}, TERMS, {})
    assert torch.allclose(plain, scaled, atol=1e-4)


def test_a_term_that_never_counted_or_never_varied_is_left_as_it_is():
    values = {"m:f": torch.full((4,), -2.0), "m:g": torch.full((4,), torch.nan)}
    total, moments, metrics = normalised_sum(values, TERMS, {})
    assert total.tolist() == [-6] * 4 and moments["m:g"] == RunningMoments()
    assert metrics["term_scale/m:f"] == metrics["term_scale/m:g"] == 1 and metrics["term_share/m:g"] == 0


def numbers(metrics):
    timed = ("seconds", "images_per_second", "memory")
    return {name: value for name, value in metrics.items() if not name.startswith(timed)}


def test_a_run_learns_from_the_normalised_sum_and_reports_the_plain_one(tmp_path):
    config = changed(TINY_CONFIG, {"reward.terms.clip_similarity.only_if": None})
    plain, scaled = (tiny_trainer(changed(config, change), tmp_path) for change in ({}, PER_TERM))
    credit, given = scaled.objective.credit, []

    def spying(experience, config, state):
        given.append(experience.scores)
        return credit(experience, config, state)

    scaled.objective = replace(scaled.objective, credit=spying)
    before, after = plain.iterate(NoWriter()), scaled.iterate(NoWriter())
    assert before["reward_mean"] == after["reward_mean"] and before["reward_std"] == after["reward_std"]
    shares = [after[f"term_share/{name}"] for name in ("nsfw", "clip_similarity")]
    assert given[0].mean().item() == pytest.approx(sum(shares), rel=1e-4)
    assert after["term_scale/nsfw"] > 10 * after["term_scale/clip_similarity"] > 0
    assert not any(name.startswith("term_") for name in before)


def test_the_scales_survive_a_checkpoint_and_samples_do_not_touch_them(tmp_path):
    config = changed(TINY_CONFIG, PER_TERM)
    whole, first, second = (tiny_trainer(config, tmp_path / name) for name in ("whole", "first", "second"))
    for trainer in (whole, first):
        trainer.iterate(NoWriter())
        trainer.iterate(NoWriter())
    kept = first.progress.term_moments
    first.score(first.collect())
    assert (
        first.progress.term_moments == kept
        and kept["nsfw"].count == 2 * TINY_CONFIG.rollout.rollout_batch_size
    )
    second.load(load_checkpoint(whole.save()))
    assert second.progress.term_moments == kept
    assert numbers(second.iterate(NoWriter())) == numbers(whole.iterate(NoWriter()))
    for a, b in zip(whole.actor.module.parameters(), second.actor.module.parameters(), strict=True):
        assert torch.equal(a, b)


def test_older_checkpoints_have_no_scales():
    saved = json.loads(json.dumps(Progress(iteration=3).to_dict()))
    del saved["term_moments"]
    assert Progress.from_dict(saved) == Progress(iteration=3)
