"""Rewards, GAE, whitening, running statistics and critic-free estimators against written-out definitions."""

import dataclasses
import json
import math

import numpy as np
import pytest
import scipy.signal
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle_ppo.rl import advantages
from dalle_ppo.rl.advantages import (
    PromptStatistics,
    RunningMoments,
    clip_advantages,
    explained_variance,
    gae,
    group_normalised,
    rloo,
    token_rewards,
    whiten,
)

FEW_CASES = settings(max_examples=25, deadline=None)


def normal(*shape: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def gae_double_sum(rewards: np.ndarray, values: np.ndarray, lam: float) -> np.ndarray:
    """The definition: A_t = sum over l of lam**l * delta_{t+l}, with V = 0 after the last token."""
    batch, length = rewards.shape
    out = np.zeros((batch, length))
    for b in range(batch):
        for t in range(length):
            for later in range(t, length):
                next_value = values[b, later + 1] if later + 1 < length else 0.0
                delta = rewards[b, later] + next_value - values[b, later]
                out[b, t] += lam ** (later - t) * delta
    return out


def test_reward_added_at_every_token():
    """The image's score is paid once, at the last token; the KL at each."""
    kl = torch.tensor([[0.5, -1.0, 2.0], [0.0, 3.0, 1.0]], dtype=torch.float64)
    rewards = token_rewards(torch.tensor([10.0, -30.0], dtype=torch.float64), kl, kl_coef=0.1)
    by_hand = [[-0.05, 0.1, 9.8], [0.0, -0.3, -30.1]]
    np.testing.assert_allclose(rewards, by_hand, rtol=1e-12)
    assert torch.equal(kl, torch.tensor([[0.5, -1.0, 2.0], [0.0, 3.0, 1.0]], dtype=torch.float64)), (
        "kl changed in place"
    )


def test_token_rewards_without_kl_weight_leave_the_score_alone():
    rewards = token_rewards(torch.tensor([2.0]), torch.full((1, 4), 7.0), kl_coef=0.0)
    assert rewards.tolist() == [[0.0, 0.0, 0.0, 2.0]]


def test_token_rewards_refuse_a_score_per_token():
    with pytest.raises(ValueError, match=r"\[2, 3\] and \[2, 3\]"):
        token_rewards(torch.zeros(2, 3), torch.zeros(2, 3), 0.1)


@FEW_CASES
@given(
    seed=st.integers(0, 10_000),
    length=st.integers(1, 12),
    gae_lambda=st.floats(0, 1),
)
def test_wrong_gae_exponent(seed, length, gae_lambda):
    """The double sum catches lam**(t + l), an off-by-one, a value bootstrapped after the end."""
    rewards, values = normal(3, length, seed=seed), normal(3, length, seed=seed + 1)
    oracle = gae_double_sum(rewards.numpy(), values.numpy(), gae_lambda)
    np.testing.assert_allclose(gae(rewards, values, gae_lambda), oracle, rtol=1e-10, atol=1e-12)


def test_gae_lambda_one_is_monte_carlo():
    """Advantage plus value is the sum of the rewards still to come, whatever the critic says."""
    rewards, values = normal(4, 20, seed=1), 50 * normal(4, 20, seed=2)
    to_come = np.cumsum(rewards.numpy()[:, ::-1], axis=1)[:, ::-1]
    np.testing.assert_allclose(gae(rewards, values, 1.0) + values, to_come, rtol=1e-10, atol=1e-11)


def test_gae_lambda_zero_is_one_step_td():
    rewards, values = normal(4, 6, seed=3), normal(4, 6, seed=4)
    after = np.concatenate([values.numpy()[:, 1:], np.zeros((4, 1))], axis=1)
    oracle = rewards.numpy() + after - values.numpy()
    np.testing.assert_allclose(gae(rewards, values, 0.0), oracle, rtol=1e-12, atol=1e-14)


def test_gae_exponent_that_explodes():
    """256 tokens in float32: dividing by lam**t overflows at small lambda; this must not."""
    rewards, values = normal(8, 256, seed=5), 10 * normal(8, 256, seed=6)
    for gae_lambda in (0.05, 0.5, 0.95, 1.0):
        single = gae(rewards.float(), values.float(), gae_lambda)
        assert single.isfinite().all()
        double = gae(rewards, values, gae_lambda)
        np.testing.assert_allclose(single, double, rtol=1e-4, atol=1e-3)
        # scipy's filter run backwards is the same recurrence by another hand
        after = np.concatenate([values.numpy()[:, 1:], np.zeros((8, 1))], axis=1)
        deltas = (rewards.numpy() + after - values.numpy())[:, ::-1]
        oracle = scipy.signal.lfilter([1.0], [1.0, -gae_lambda], deltas, axis=1)[:, ::-1]
        np.testing.assert_allclose(double, oracle, rtol=1e-9, atol=1e-9)


def test_first_token_at_lambda_095_hardly_sees_the_score():
    """The number the design warns with: 0.95**255 = 2e-6 of the score reaches the first of 256 tokens."""
    rewards = torch.zeros(1, 256, dtype=torch.float64)
    rewards[0, -1] = 1.0
    advantages = gae(rewards, torch.zeros_like(rewards), 0.95)
    assert advantages[0, 0].item() == pytest.approx(2.1e-6, rel=0.05)
    assert advantages[0, -1].item() == 1.0


def test_gradient_leaking_through_the_advantages():
    values = normal(2, 5, seed=7).requires_grad_(True)
    assert not gae(normal(2, 5, seed=8), values, 0.95).requires_grad
    assert not whiten(values).requires_grad
    assert not token_rewards(values[:, 0], values, 0.1).requires_grad
    assert not rloo(values[:, 0], torch.tensor([0, 0])).requires_grad


def test_gae_refuses_values_of_another_shape():
    with pytest.raises(ValueError, match="shapes must be equal"):
        gae(torch.zeros(2, 4), torch.zeros(2, 5), 0.95)
    with pytest.raises(ValueError, match="shapes must be equal"):
        gae(torch.zeros(2, 4), torch.zeros(2, 4, 1), 0.95)


def test_whitening_to_mean_zero_and_deviation_one():
    for dtype, tolerance in ((torch.float64, 1e-7), (torch.float32, 1e-5)):
        whitened = whiten(3 + 20 * normal(16, 256, seed=9, dtype=dtype))
        assert whitened.double().mean().abs().item() < tolerance
        assert whitened.double().numpy().std() == pytest.approx(1.0, abs=tolerance)


def test_per_sequence_whitening_erases_the_score():
    """A good and a bad image: over the batch they keep +1 and -1, per sequence nothing is left."""
    advantages = torch.tensor([[5.0] * 4, [-5.0] * 4], dtype=torch.float64)
    np.testing.assert_allclose(whiten(advantages), [[1.0] * 4, [-1.0] * 4], rtol=1e-8)
    per_sequence = (advantages - advantages.mean(1, keepdim=True)) / (advantages.std(1, keepdim=True) + 1e-8)
    assert per_sequence.abs().max() == 0


def test_whitening_a_batch_without_spread_gives_zeros():
    assert whiten(torch.full((3, 4), 0.1)).abs().max() < 1e-3
    assert whiten(torch.full((1, 1), -30.0)).item() == 0


def test_whitening_is_permuted_with_the_batch():
    x, order = normal(6, 5, seed=10), torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(whiten(x[order]), whiten(x)[order], rtol=1e-12, atol=1e-14)


def groups_of(scores: np.ndarray, group_index: np.ndarray):
    for i, group in enumerate(group_index):
        members = [j for j, other in enumerate(group_index) if other == group]
        yield i, members


def test_rloo_baseline_that_includes_the_image_itself():
    """Leave-one-out by hand: with the own score in the baseline every advantage shrinks by (n - 1) / n."""
    advantages = rloo(torch.tensor([1.0, 4.0, 7.0], dtype=torch.float64), torch.tensor([2, 2, 2]))
    np.testing.assert_allclose(advantages, [1 - 5.5, 4 - 4, 7 - 2.5], rtol=1e-12, atol=1e-14)


def test_rloo_and_group_normalised_against_loops_over_interleaved_groups():
    group_index = np.array([7, 3, 7, 3, 3, 9, 9, 7, 9, 3])
    scores = normal(10, seed=11)
    left_out, normalised = np.zeros(10), np.zeros(10)
    for i, members in groups_of(scores.numpy(), group_index):
        left_out[i] = scores[i] - np.mean([scores[j] for j in members if j != i])
        group = scores.numpy()[members]
        normalised[i] = (scores[i] - group.mean()) / (group.std(ddof=1) + 1e-4)
    np.testing.assert_allclose(rloo(scores, torch.from_numpy(group_index)), left_out, rtol=1e-12)
    np.testing.assert_allclose(
        group_normalised(scores, torch.from_numpy(group_index)), normalised, rtol=1e-12
    )


@pytest.mark.parametrize("estimator", [rloo, group_normalised])
def test_critic_free_estimators_ignore_order_and_other_groups(estimator):
    scores, group_index = normal(8, seed=12), torch.tensor([0, 1, 0, 1, 2, 2, 0, 1])
    order = torch.tensor([5, 2, 7, 0, 1, 6, 4, 3])
    advantages = estimator(scores, group_index)
    torch.testing.assert_close(estimator(scores[order], group_index[order]), advantages[order])
    louder = torch.where(group_index == 2, scores * 1e6, scores)
    torch.testing.assert_close(estimator(louder, group_index)[group_index != 2], advantages[group_index != 2])


@pytest.mark.parametrize("estimator", [rloo, group_normalised])
def test_equal_scores_in_a_group_give_exactly_zero(estimator):
    """Float32: a rounded mean over a tiny deviation would be an advantage made of noise."""
    scores, group_index = torch.linspace(-30.1, 6.3, 20).repeat(7), torch.arange(20).repeat(7)
    assert estimator(scores, group_index).tolist() == [0.0] * 140


@pytest.mark.parametrize("estimator", [rloo, group_normalised])
def test_a_group_of_one_is_refused(estimator):
    with pytest.raises(ValueError, match="group 5 has one image"):
        estimator(torch.zeros(3), torch.tensor([1, 5, 1]))
    with pytest.raises(ValueError, match="shapes must be equal"):
        estimator(torch.zeros(3), torch.tensor([1, 1]))


def test_clip_advantages():
    assert clip_advantages(torch.tensor([-9.0, -5.0, 0.5, 7.0]), 5.0).tolist() == [-5.0, -5.0, 0.5, 5.0]


@FEW_CASES
@given(sizes=st.lists(st.integers(0, 30), min_size=1, max_size=6), offset=st.sampled_from([0.0, -30.0, 1e6]))
def test_running_moments_of_batches_are_the_moments_of_everything(sizes, offset):
    batches = [offset + 3 * normal(size, seed=i) for i, size in enumerate(sizes)]
    moments = RunningMoments()
    for batch in batches:
        moments = moments.update(batch)
    everything = torch.cat(batches).numpy()
    assert moments.count == everything.size
    if everything.size:
        assert moments.mean == pytest.approx(everything.mean(), rel=1e-12, abs=1e-12)
        assert moments.var == pytest.approx(everything.var(), rel=1e-7, abs=1e-12)


def test_running_variance_by_the_difference_of_large_squares():
    """E[x**2] - E[x]**2 at a mean of 1e9 has no digits left; Chan's update keeps them."""
    moments = RunningMoments()
    for _ in range(10):
        moments = moments.update(torch.tensor([1e9, 1e9 + 2.0], dtype=torch.float64))
    assert moments.var == pytest.approx(1.0, rel=1e-9)


def test_running_moments_divide_by_one_until_there_is_spread():
    assert RunningMoments().std == 1.0
    assert RunningMoments().update(torch.tensor([-30.1])).std == 1.0
    constant = RunningMoments()
    for size in (3, 5, 7):
        constant = constant.update(torch.full((size,), 0.1))
    assert constant.std == 1.0
    assert RunningMoments().update(torch.tensor([-1.0, 1.0])).std == 1.0
    assert RunningMoments().update(torch.tensor([-3.0, 3.0])).std == 3.0


def test_running_moments_refuse_numbers_that_would_poison_them_and_survive_json():
    moments = RunningMoments().update(torch.tensor([0.1, -30.0, 6.0]))
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="finite"):
            moments.update(torch.tensor([1.0, bad]))
    assert RunningMoments(**json.loads(json.dumps(dataclasses.asdict(moments)))) == moments


def test_prompt_statistics_against_the_buffer_by_hand():
    """DDPO's rule: the caption's last `buffer_size` scores once it has `min_count`, the batch before that."""
    statistics = PromptStatistics(buffer_size=4, min_count=4)
    first = torch.tensor([1.0, 5.0, 2.0], dtype=torch.float64)
    statistics = statistics.update(first, ["a", "b", "a"])
    batch = np.array([1.0, 5.0, 2.0])
    oracle = (batch - batch.mean()) / (batch.std() + 1e-6)
    np.testing.assert_allclose(statistics.advantages(first, ["a", "b", "a"]), oracle, rtol=1e-12)

    second = torch.tensor([3.0, 9.0, 4.0, 5.0], dtype=torch.float64)
    ids = ["a", "b", "a", "a"]
    statistics = statistics.update(second, ids)
    kept = np.array([2.0, 3.0, 4.0, 5.0])  # the 1.0 has left the buffer of four
    batch = second.numpy()
    oracle = (batch - kept.mean()) / (kept.std() + 1e-6)
    oracle[1] = (9.0 - batch.mean()) / (batch.std() + 1e-6)
    np.testing.assert_allclose(statistics.advantages(second, ids), oracle, rtol=1e-12)


def test_of_many_captions_those_not_seen_for_longest_are_forgotten(monkeypatch):
    monkeypatch.setattr(advantages, "MOST_CAPTIONS", 3)
    statistics = PromptStatistics(buffer_size=4, min_count=1)
    for captions in (["a", "b"], ["c", "a"], ["d"]):
        statistics = statistics.update(torch.ones(len(captions)), captions)
    assert list(statistics.scores) == ["c", "a", "d"] and len(statistics.scores["a"]) == 2


def test_prompt_statistics_leave_their_own_object_alone_and_survive_json():
    empty = PromptStatistics(buffer_size=4, min_count=2)
    full = empty.update(torch.tensor([0.1, 0.2, 0.3]), torch.tensor([11, 12, 11]))
    assert not empty.scores and set(full.scores) == {11, 12}
    assert PromptStatistics.from_dict(json.loads(json.dumps(full.to_dict()))) == full


def test_prompt_statistics_refuse_bad_lengths_and_scores():
    with pytest.raises(ValueError, match="one caption id per score"):
        PromptStatistics().update(torch.zeros(2), ["a"])
    with pytest.raises(ValueError, match="finite"):
        PromptStatistics().update(torch.tensor([math.nan]), ["a"])


def test_explained_variance():
    returns = normal(4, 5, seed=13)
    assert explained_variance(returns + 3.0, returns) == pytest.approx(1.0), (
        "a constant offset is no variance"
    )
    assert explained_variance(torch.zeros_like(returns), returns) == pytest.approx(0.0, abs=1e-12)
    assert explained_variance(-returns, returns) == pytest.approx(-3.0)
    noise = normal(4, 5, seed=14)
    oracle = 1 - np.var(noise.numpy()) / np.var(returns.numpy())
    assert explained_variance(returns - noise, returns) == pytest.approx(oracle, rel=1e-12)
    assert explained_variance(returns, torch.ones(4, 5).double()) is None


@pytest.mark.parametrize(("tokens", "size"), [(16, 0.01), (256, 1.0), (1024, 10.0)])
def test_rounding_is_no_variance_to_explain(tokens, size):
    """All scores are equal and lambda is 1: the returns are the score, exactly but for float32."""
    generator = torch.Generator().manual_seed(tokens)
    values, scores = size * torch.randn(8, tokens, generator=generator), torch.full((8,), 0.3)
    returns = gae(token_rewards(scores, torch.zeros(8, tokens), 0.0), values, 1.0) + values
    assert 0 < (returns - 0.3).abs().max() < 1e-4
    assert explained_variance(values, returns) is None
    differing = returns + torch.linspace(-1, 1, 8)[:, None] * 1e-3 * size
    oracle = 1 - (differing - values).double().var(correction=0) / differing.double().var(correction=0)
    assert explained_variance(values, differing) == pytest.approx(oracle.item())
