"""KL estimators, exact KL, entropy and adaptive coefficient against sums over the vocabulary and scipy."""

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch

from dalle_ppo.rl.adaptive_kl import AdaptiveKL
from dalle_ppo.rl.kl import entropy, exact_kl, kl_k1, kl_k2, kl_k3
from dalle_ppo.rl.kl_placement import check_kl_placement


def random_log_pi(*shape: int, seed: int = 0, spread: float = 2.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.log_softmax(spread * torch.randn(*shape, generator=generator, dtype=torch.float64), -1)


def expectation(estimator, log_pi: torch.Tensor, ref_log_pi: torch.Tensor) -> torch.Tensor:
    """Sum over the vocabulary of pi(a) * estimator(a), for [B, V] distributions: no sampling involved."""
    return (log_pi.exp() * estimator(log_pi, ref_log_pi)).sum(-1)


def test_exact_kl_and_entropy_against_scipy():
    log_pi, ref = random_log_pi(3, 4, 11, seed=1), random_log_pi(3, 4, 11, seed=2)
    p, q = log_pi.exp().numpy(), ref.exp().numpy()
    np.testing.assert_allclose(exact_kl(log_pi, ref), scipy.stats.entropy(p, q, axis=-1), rtol=1e-12)
    np.testing.assert_allclose(entropy(log_pi), scipy.stats.entropy(p, axis=-1), rtol=1e-12)


def test_divergence_the_wrong_way_round():
    """KL(pi, ref) and KL(ref, pi) differ; a coin worked out by hand."""
    pi, ref = (
        torch.tensor([0.9, 0.1], dtype=torch.float64).log(),
        torch.tensor([0.5, 0.5], dtype=torch.float64).log(),
    )
    by_hand = 0.9 * math.log(1.8) + 0.1 * math.log(0.2)
    assert exact_kl(pi, ref).item() == pytest.approx(by_hand, rel=1e-12)
    assert expectation(kl_k1, pi[None], ref[None]).item() == pytest.approx(by_hand, rel=1e-12)
    assert expectation(kl_k3, pi[None], ref[None]).item() == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.parametrize("estimator", [kl_k1, kl_k3])
def test_k1_and_k3_are_unbiased(estimator):
    log_pi, ref = random_log_pi(6, 9, seed=3), random_log_pi(6, 9, seed=4)
    oracle = scipy.stats.entropy(log_pi.exp().numpy(), ref.exp().numpy(), axis=-1)
    np.testing.assert_allclose(expectation(estimator, log_pi, ref), oracle, rtol=1e-11)


def test_k2_is_biased_as_a_value_but_right_to_third_order_near_the_reference():
    log_pi = random_log_pi(1, 9, seed=5)
    direction = random_log_pi(1, 9, seed=6)
    errors = []
    for step in (1e-2, 1e-3):
        ref = torch.log_softmax(log_pi + step * direction, -1)
        errors.append((expectation(kl_k2, log_pi, ref) - exact_kl(log_pi, ref)).abs().item())
    assert errors[0] / errors[1] == pytest.approx(1000, rel=0.05)
    far = random_log_pi(1, 9, seed=7)
    assert abs(expectation(kl_k2, log_pi, far).item() / exact_kl(log_pi, far).item() - 1) > 0.1


def test_k2_and_k3_are_never_negative_and_k1_is():
    log_probs = torch.log(torch.tensor([[0.1, 0.5, 0.9]], dtype=torch.float64))
    ref = torch.log(torch.tensor([[0.4, 0.5, 0.2]], dtype=torch.float64))
    np.testing.assert_allclose(kl_k1(log_probs, ref), np.log([[0.25, 1.0, 4.5]]), rtol=1e-12)
    np.testing.assert_allclose(kl_k2(log_probs, ref), 0.5 * np.log([[0.25, 1.0, 4.5]]) ** 2, rtol=1e-12)
    by_hand = [[4 - 1 - math.log(4), 0.0, 1 / 4.5 - 1 + math.log(4.5)]]
    np.testing.assert_allclose(kl_k3(log_probs, ref), by_hand, rtol=1e-12)


def test_kl_of_equal_policies_is_exactly_zero():
    """Not small: zero, in float32, at the sizes of DALL-E mini (a slice of its tokens)."""
    log_pi = torch.log_softmax(8 * torch.randn(2, 4, 16384, generator=torch.Generator().manual_seed(0)), -1)
    log_probs = log_pi[..., 5]
    assert exact_kl(log_pi, log_pi.clone()).abs().max() == 0
    for estimator in (kl_k1, kl_k2, kl_k3):
        assert estimator(log_probs, log_probs.clone()).abs().max() == 0


def test_k3_keeps_its_digits_close_to_the_reference():
    """`exp(x) - 1` in float32 loses everything at a log-ratio of 1e-4; the true value is x**2 / 2."""
    log_probs = torch.full((1, 1), 1e-4)
    assert kl_k3(log_probs, torch.zeros(1, 1)).item() == pytest.approx(0.5e-8, rel=1e-2)


def test_k1_is_zero_for_equal_policies_and_refuses_unequal_shapes():
    """And large for equal policies where one image's log-probs meet another image's."""
    log_pi = random_log_pi(4, 1, 9, seed=8)
    drawn = torch.tensor([[0], [3], [5], [8]])
    log_probs = log_pi.gather(-1, drawn[..., None])[..., 0]
    assert kl_k1(log_probs, log_probs).abs().max() == 0
    assert kl_k1(log_probs, log_probs.roll(1, 0)).abs().max() > 0.5
    with pytest.raises(ValueError, match=r"log_probs \[4, 1\], ref_log_probs \[4\]"):
        kl_k1(log_probs, log_probs[:, 0])


def test_codes_outside_the_support_count_nothing_and_break_no_gradient():
    logits = torch.randn(3, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    cut = logits.clone()
    cut[:, 5:] = -math.inf
    cut.requires_grad_(True)
    log_pi = torch.log_softmax(cut, -1)
    ref = torch.log_softmax(logits[:, :5].roll(1, -1), -1)
    ref_padded = torch.cat([ref, torch.full((3, 3), -math.inf, dtype=torch.float64)], -1)
    small = torch.softmax(logits[:, :5], -1).numpy()
    np.testing.assert_allclose(
        exact_kl(log_pi, ref_padded).detach(), scipy.stats.entropy(small, ref.exp().numpy(), axis=-1)
    )
    np.testing.assert_allclose(entropy(log_pi).detach(), scipy.stats.entropy(small, axis=-1))
    gradient = torch.autograd.grad((exact_kl(log_pi, ref_padded) + entropy(log_pi)).sum(), log_pi)[0]
    assert gradient[:, :5].isfinite().all() and (gradient[:, 5:] == 0).all()


def test_a_code_the_reference_cannot_draw_makes_the_kl_infinite():
    log_pi = torch.log(torch.tensor([0.5, 0.5]))
    assert exact_kl(log_pi, torch.tensor([0.0, -math.inf])).item() == math.inf


def test_gradients_of_exact_kl_and_entropy():
    logits = torch.randn(2, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    logits.requires_grad_(True)
    ref = random_log_pi(2, 5, seed=9)
    assert torch.autograd.gradcheck(lambda z: exact_kl(torch.log_softmax(z, -1), ref), logits)
    assert torch.autograd.gradcheck(lambda z: entropy(torch.log_softmax(z, -1)), logits)


@pytest.mark.parametrize("estimator, placement", [("k1", "reward"), ("k2", "loss"), ("exact", "loss")])
def test_allowed_placements(estimator, placement):
    check_kl_placement(estimator, placement)


@pytest.mark.parametrize(
    "estimator, placement, reason",
    [
        ("k1", "loss", "expected gradient is zero"),
        ("k3", "loss", r"other divergence, KL\(reference, policy\)"),
        ("k2", "reward", "biased"),
        ("k3", "reward", "biased"),
        ("exact", "reward", "biased"),
        ("k4", "reward", "unknown"),
        ("k1", "Reward", "unknown"),
    ],
)
def test_refused_placements_say_why(estimator, placement, reason):
    with pytest.raises(ValueError, match=reason):
        check_kl_placement(estimator, placement)


def test_adaptive_coefficient_against_its_recurrence():
    controller = AdaptiveKL(kl_coef=0.05, target=20.0, horizon=1000.0)
    expected = 0.05
    for kl in (0.0, 18.0, 20.0, 21.0, 23.9, 400.0):
        expected *= 1 + float(np.clip(kl / 20.0 - 1, -0.2, 0.2)) * 96 / 1000.0
        controller = controller.update(kl, 96)
        assert controller.kl_coef == pytest.approx(expected, rel=1e-12)
    assert controller.target == 20.0 and controller.horizon == 1000.0


def test_adaptive_error_is_clipped_at_a_fifth_both_ways():
    controller = AdaptiveKL(kl_coef=1.0, target=10.0, horizon=100.0)
    assert controller.update(1e6, 100).kl_coef == pytest.approx(1.2)
    assert controller.update(0.0, 100).kl_coef == pytest.approx(0.8)
    assert controller.update(11.0, 50).kl_coef == pytest.approx(1.05)
    assert controller.kl_coef == 1.0, "update must not change its own object"


def test_adaptive_refuses_a_kl_that_is_no_number():
    with pytest.raises(ValueError, match="finite"):
        AdaptiveKL(0.1, 10.0, 100.0).update(math.nan, 10)
