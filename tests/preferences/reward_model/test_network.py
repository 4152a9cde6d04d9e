"""The ranking loss against independent likelihoods, and what the ensemble learns."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from statsmodels.duration.hazard_regression import PHReg

from dalle_ppo.models.heads.head_layers import build_layers
from dalle_ppo.preferences.reward_model.data import Rankings
from dalle_ppo.preferences.reward_model.network import FitSettings, fit, ranking_losses


def rankings(ranks, captions=None):
    """Rankings, each of its own pictures; rows may be of different lengths."""
    width = max(map(len, ranks))
    table = torch.tensor([[*row, *[0] * (width - len(row))] for row in ranks])
    index = torch.zeros_like(table)
    index[table > 0] = torch.arange(int((table > 0).sum()))
    names = captions or tuple(map(str, range(len(ranks))))
    return Rankings(torch.zeros(int((table > 0).sum()), 1), index, table, names)


def losses(scores, ranks):
    return ranking_losses(torch.tensor(scores, dtype=torch.float64)[:, None], rankings(ranks))[:, 0]


def test_a_pair_is_bradley_terry():
    assert losses([0.3, -0.9], [[1, 2]]).tolist() == pytest.approx([np.log1p(np.exp(-1.2))])


def test_the_probabilities_of_all_orders_of_four_add_up_to_one():
    scores = [0.3, -0.9, 2.0, 0.1]
    total = sum(
        float(losses(scores, [[r + 1 for r in order]]).neg().exp()) for order in permutations(range(4))
    )
    assert total == pytest.approx(1)


@pytest.mark.parametrize("ranks", [[1, 2, 3, 4], [1, 1, 2, 3], [2, 1, 1, 1], [1, 1, 1, 1], [3, 1, 3, 2]])
def test_ties_follow_breslow_as_in_a_cox_regression(ranks):
    """A Cox model's partial likelihood is that of Plackett and Luce, with ranks for times."""
    scores = np.array([0.3, -0.9, 2.0, 0.1])
    oracle = PHReg(np.array(ranks, dtype=float), scores[:, None], ties="breslow").loglike(np.ones(1))
    assert float(losses(scores, [ranks])[0]) == pytest.approx(-oracle)


def test_rankings_of_different_lengths_do_not_disturb_each_other():
    scores = [0.3, -0.9, 2.0, 0.1, 1.5]
    both = losses(scores, [[2, 1], [1, 3, 2]])
    assert both.tolist() == pytest.approx(
        [float(losses(scores[:2], [[2, 1]])), float(losses(scores[2:], [[1, 3, 2]]))]
    )
    assert torch.isfinite(both).all()


def planted(num, weights, seed, noise=0.0):
    """Pairs whose better picture has the larger `features @ weights`."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(2 * num, len(weights), generator=generator)
    worth = (features @ weights).view(num, 2)
    first = (worth[:, 0] > worth[:, 1]) ^ (torch.rand(num, generator=generator) < noise)
    ranks = torch.where(first[:, None], torch.tensor([1, 2]), torch.tensor([2, 1]))
    index = torch.arange(2 * num).view(num, 2)
    return Rankings(features, index, ranks, tuple(f"{seed} {i}" for i in range(num)))


@pytest.fixture(scope="module")
def learned():
    weights = torch.tensor([2.0, -1.0, 0.0, 0.0])
    parts = {"fit": planted(300, weights, 1), "validation": planted(80, weights, 2)}
    return parts, {h: fit(parts, FitSettings(hidden=h, members=3, penalties=(0.001, 0.01))) for h in (0, 8)}


@pytest.mark.parametrize("hidden", [0, 8])
def test_a_planted_preference_is_found(learned, hidden):
    held_out = planted(300, torch.tensor([2.0, -1.0, 0.0, 0.0]), 3)
    with torch.no_grad():
        scores = learned[1][hidden](held_out.features)
    winner, loser, _ = held_out.pairs()
    right = (scores[winner] > scores[loser]).float().mean(dim=0)
    assert right.min() > 0.9, "each member"


@pytest.mark.parametrize("hidden", [0, 8])
def test_the_layers_of_the_head_compute_the_same(learned, hidden):
    parts, ensembles = learned
    centre = torch.tensor([0.5, -1.0, 2.0])
    head = build_layers(ensembles[hidden].layers(1.7, centre))
    with torch.no_grad():
        wanted = 1.7 * (ensembles[hidden](parts["fit"].features) - centre)
        torch.testing.assert_close(head(parts["fit"].features), wanted, rtol=1e-4, atol=1e-4)


def test_members_differ_and_the_same_seed_gives_the_same_ensemble(learned):
    parts, ensembles = learned
    torch.manual_seed(99)
    again = fit(parts, FitSettings(hidden=8, members=3, penalties=(0.001, 0.01)))
    with torch.no_grad():
        first, second = ensembles[8](parts["fit"].features), again(parts["fit"].features)
    torch.testing.assert_close(first, second)
    assert (first.std(dim=1) > 1e-3).all()


def test_a_linear_model_is_the_penalised_logistic_regression():
    """A pair is a logistic regression of the answer on the difference of the two, without an intercept."""
    planted_pairs = planted(200, torch.tensor([2.0, -1.0, 0.0, 0.5]), 4, noise=0.1)
    parts = {"fit": planted_pairs, "validation": planted(50, torch.zeros(4), 5)}
    found = fit(parts, FitSettings(members=1, hidden=0, penalties=(0.02,)))
    features = (planted_pairs.features - planted_pairs.features.mean(0)) / planted_pairs.features.std(0)
    difference = (features[0::2] - features[1::2]).numpy()
    answers = planted_pairs.ranks[:, 0] == 1
    # C weighs the sum of the losses against half the squared weights.
    oracle = LogisticRegression(C=1 / (2 * 0.02 * 200), fit_intercept=False, tol=1e-8).fit(
        difference, answers
    )
    np.testing.assert_allclose(found.weights[0].detach()[0, :, 0], oracle.coef_[0], atol=2e-3)


def test_each_member_keeps_the_penalty_that_suits_other_answers_best():
    """Coin flips in many dimensions: a weak penalty alone makes a model that is sure of itself."""
    coin = {
        name: planted(40, torch.zeros(30), seed, noise=0.5) for name, seed in (("fit", 1), ("validation", 2))
    }
    with torch.no_grad():
        weak, chosen = (
            ranking_losses(
                fit(coin, FitSettings(2, 8, penalties))(coin["validation"].features), coin["validation"]
            )
            for penalties in ((1e-5,), (1e-5, 1.0))
        )
    assert (weak.mean(dim=0) > 1).all() and (chosen.mean(dim=0) < 0.72).all()


def test_pictures_that_no_ranking_names_change_nothing():
    parts = {"fit": planted(60, torch.tensor([1.0, -1.0]), 1), "validation": planted(20, torch.ones(2), 2)}
    widened = {
        name: replace(
            part,
            features=torch.cat([torch.full((1, 2), 1e3), part.features]),
            index=torch.cat([part.index + 1, torch.zeros(len(part), 1, dtype=torch.int64)], dim=1),
            ranks=torch.cat([part.ranks, torch.zeros(len(part), 1, dtype=torch.int64)], dim=1),
        )
        for name, part in parts.items()
    }
    plain, other = (fit(given, FitSettings(members=2, hidden=4)) for given in (parts, widened))
    with torch.no_grad():
        torch.testing.assert_close(plain(parts["fit"].features), other(parts["fit"].features))


def test_penalties_must_be_numbers_from_zero_up():
    for penalties in ((), (-0.1,)):
        with pytest.raises(ValueError, match="penalties is"):
            FitSettings(penalties=penalties)
