"""Policy and value losses: every clip case by hand, gradients by gradcheck, sums over microbatches."""

import math

import numpy as np
import pytest
import torch

from dalle_ppo.rl.losses import ppo_loss, score_function_loss, truncated_importance_weights, value_loss

CLIP = {"clip_range": 0.2, "clip_range_high": 0.28}


def f64(*rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def one_token(ratio: float, advantage: float, **settings):
    """Loss, gradient with respect to the log-prob, and clip flag of a single token."""
    log_probs = f64([math.log(ratio) - 1.5]).requires_grad_(True)
    result = ppo_loss(log_probs, f64([-1.5]), f64([advantage]), **(CLIP | settings))
    gradient = torch.autograd.grad(result.loss.sum(), log_probs)[0]
    return result.loss.item(), gradient.item(), result.clipped.item()


@pytest.mark.parametrize(
    "ratio, advantage, loss, gradient, clipped",
    [
        (1.0, 2.0, -2.0, -2.0, False),
        (1.0, -2.0, 2.0, 2.0, False),
        (1.1, 2.0, -2.2, -2.2, False),
        (1.25, 2.0, -2.5, -2.5, False),  # between the lower and the upper clip range
        (1.5, 2.0, -2.56, 0.0, True),  # good and already likelier: no more
        (0.5, 2.0, -1.0, -1.0, False),  # good and less likely: must be able to come back
        (1.5, -2.0, 3.0, 3.0, False),  # bad and likelier: must be able to come back
        (0.5, -2.0, 1.6, 0.0, True),  # bad and already unlikely: no more
        (0.9, -2.0, 1.8, 1.8, False),
        (5.0, -2.0, 10.0, 10.0, False),  # without dual clip nothing bounds this
    ],
)
def test_clip_cases_on_both_signs_of_the_advantage(ratio, advantage, loss, gradient, clipped):
    """Catches min for max, the clip applied to one sign only, a clip that ignores the way back."""
    assert one_token(ratio, advantage) == (pytest.approx(loss), pytest.approx(gradient), clipped)


@pytest.mark.parametrize(
    "ratio, advantage, loss, gradient, clipped",
    [
        (2.9, -2.0, 5.8, 5.8, False),
        (5.0, -2.0, 6.0, 0.0, True),
        (0.5, -2.0, 1.6, 0.0, True),
        (5.0, 2.0, -2.56, 0.0, True),  # the ordinary clip: dual clip is for negative advantages only
        (1.1, 2.0, -2.2, -2.2, False),
    ],
)
def test_dual_clip_on_the_wrong_sign(ratio, advantage, loss, gradient, clipped):
    result = one_token(ratio, advantage, dual_clip=3.0)
    assert result == (pytest.approx(loss), pytest.approx(gradient), clipped)


def test_upper_clip_range_defaults_to_the_lower_one():
    log_probs, zeros = f64([math.log(1.25), math.log(0.75)]), f64([0.0, 0.0])
    same = ppo_loss(log_probs, zeros, f64([1.0, -1.0]), clip_range=0.2)
    assert same.clipped.tolist() == [[True, True]]
    np.testing.assert_allclose(same.loss, [[-1.2, 0.8]], rtol=1e-12)
    assert ppo_loss(log_probs, zeros, f64([1.0, -1.0]), **CLIP).clipped.tolist() == [[False, True]]


def test_first_minibatch():
    """Equal weights: ratio exactly 1, nothing clipped, KL exactly 0, and the gradient is REINFORCE's."""
    old = -3 * torch.rand(4, 256, generator=torch.Generator().manual_seed(0))
    advantages = torch.randn(4, 256, generator=torch.Generator().manual_seed(1))
    for dual_clip in (None, 3.0):
        log_probs = old.clone().requires_grad_(True)
        result = ppo_loss(log_probs, old, advantages, dual_clip=dual_clip, **CLIP)
        assert (result.ratio == 1).all() and not result.clipped.any() and (result.approx_kl == 0).all()
        ppo = torch.autograd.grad(result.loss.sum(), log_probs)[0]
        plain = score_function_loss(log_probs, advantages, old_log_probs=old)
        assert (plain.ratio == 1).all() and not plain.clipped.any() and (plain.approx_kl == 0).all()
        assert torch.equal(ppo, torch.autograd.grad(plain.loss.sum(), log_probs)[0])


def test_ratio_and_kl_away_from_the_old_policy():
    ratio = f64([0.5, 1.0, 3.0])
    result = ppo_loss(ratio.log() - 1, f64([-1.0] * 3), f64([1.0] * 3), **CLIP)
    np.testing.assert_allclose(result.ratio, ratio, rtol=1e-12)
    by_hand = [[0.5 - 1 - math.log(0.5), 0.0, 2 - math.log(3)]]
    np.testing.assert_allclose(result.approx_kl, by_hand, rtol=1e-12, atol=1e-15)


def test_approx_kl_is_unbiased_for_the_kl_of_the_old_policy_to_the_new():
    """Summed over the vocabulary under the old policy: which way round the early stop measures."""
    generator = torch.Generator().manual_seed(4)
    old, new = torch.log_softmax(torch.randn(2, 9, generator=generator, dtype=torch.float64), -1).split(1)
    result = ppo_loss(new, old, torch.zeros_like(old), **CLIP)
    oracle = (old.exp() * (old - new)).sum().item()
    assert (old.exp() * result.approx_kl).sum().item() == pytest.approx(oracle, rel=1e-12)


def test_ratio_of_far_tokens_stays_finite_in_float32():
    log_probs = torch.tensor([[-0.1, -200.0, -0.1]]).requires_grad_(True)
    old = torch.tensor([[-200.0, -0.1, -0.1]])
    result = ppo_loss(log_probs, old, -torch.ones(1, 3), **CLIP)
    assert result.loss.isfinite().all() and result.approx_kl.isfinite().all()
    assert result.ratio[0, 0].item() == pytest.approx(math.exp(20), rel=1e-5)
    gradient = torch.autograd.grad(result.loss.sum(), log_probs)[0]
    assert gradient.isfinite().all() and gradient[0, 2] == 1


def test_a_number_that_is_none_is_not_clamped_away():
    for policy_loss, extra in ((ppo_loss, {"clip_range": 0.2}), (score_function_loss, {})):
        result = policy_loss(
            log_probs=torch.tensor([[math.nan]]),
            old_log_probs=torch.zeros(1, 1),
            advantages=torch.ones(1, 1),
            **extra,
        )
        assert result.loss.isnan().all()


def test_gradient_leaking_into_the_old_policy_or_the_advantages():
    log_probs, old, advantages = (f64([-1.0, -2.0]).requires_grad_(True) for _ in range(3))
    for result in (
        ppo_loss(log_probs, old, advantages, **CLIP),
        score_function_loss(log_probs, advantages, old_log_probs=old),
    ):
        gradients = torch.autograd.grad(result.loss.sum(), (log_probs, old, advantages), allow_unused=True)
        assert gradients[0] is not None and gradients[1:] == (None, None)
        assert not result.ratio.requires_grad and not result.approx_kl.requires_grad


@pytest.mark.parametrize("dual_clip", [None, 3.0])
def test_policy_losses_by_finite_differences(dual_clip):
    generator = torch.Generator().manual_seed(5)
    old, advantages, step = torch.randn(3, 3, 7, generator=generator, dtype=torch.float64).unbind(0)
    log_probs = (old + step).requires_grad_(True)
    assert torch.autograd.gradcheck(
        lambda x: ppo_loss(x, old, advantages, dual_clip=dual_clip, **CLIP).loss, log_probs
    )
    assert torch.autograd.gradcheck(
        lambda x: score_function_loss(x, advantages, old_log_probs=old).loss, log_probs
    )


def test_score_function_pushes_good_tokens_up():
    log_probs = f64([-1.0, -2.0]).requires_grad_(True)
    result = score_function_loss(log_probs, f64([3.0, -0.5]), old_log_probs=f64([-1.0, -2.0]))
    assert result.loss.tolist() == [[3.0, -1.0]]
    assert torch.autograd.grad(result.loss.sum(), log_probs)[0].tolist() == [[-3.0, 0.5]]


def test_advantages_of_one_number_per_image_are_refused():
    """[B] against [B, B] would broadcast along the tokens: image 0's advantage for everybody's token 0."""
    with pytest.raises(ValueError, match="shapes must be equal"):
        ppo_loss(torch.zeros(4, 4), torch.zeros(4, 4), torch.zeros(4), clip_range=0.2)
    with pytest.raises(ValueError, match="shapes must be equal"):
        score_function_loss(torch.zeros(4, 4), torch.zeros(4, 1), old_log_probs=torch.zeros(4, 4))
    with pytest.raises(ValueError, match="shapes must be equal"):
        value_loss(torch.zeros(4, 4, 1), torch.zeros(4, 4), torch.zeros(4, 4))


@pytest.mark.parametrize(
    "value, target, loss, gradient",
    [
        (0.1, 3.0, 0.5 * 2.9**2, -2.9),  # within the clip
        (0.9, 3.0, 0.5 * 2.5**2, 0.0),  # has moved far enough towards the target
        (-0.9, 3.0, 0.5 * 3.9**2, -3.9),  # has moved away: the larger loss, gradient back
        (-0.9, -3.0, 0.5 * 2.5**2, 0.0),
        (0.9, -3.0, 0.5 * 3.9**2, 3.9),
        (0.9, 0.2, 0.5 * 0.7**2, 0.7),  # overshot
    ],
)
def test_value_clip_in_the_wrong_units(value, target, loss, gradient):
    """From a zero-initialised head: an absolute 0.5 leaves room, a share of the old value none."""
    values = f64([value]).requires_grad_(True)
    result = value_loss(values, f64([0.0]), f64([target]), value_clip=0.5)
    assert result.item() == pytest.approx(loss)
    assert torch.autograd.grad(result.sum(), values)[0].item() == pytest.approx(gradient)


def test_value_clip_is_measured_in_the_units_of_the_returns():
    """Scores of -30 and 6 undivided: a clip of 0.2 silences the critic after a step that explains nothing."""
    generator = torch.Generator().manual_seed(6)
    values, old, returns = torch.randn(3, 2, 9, generator=generator, dtype=torch.float64).unbind(0)
    plain, raw = (value_loss(k * values, k * old, k * returns, value_clip=0.2 * k) for k in (1, 18))
    torch.testing.assert_close(raw, 18**2 * plain, rtol=1e-12, atol=1e-12)
    stuck = f64([-0.3, 0.3]).requires_grad_(True)
    loss = value_loss(stuck, f64([0.0, 0.0]), f64([-30.0, 6.0]), value_clip=0.2)
    assert torch.autograd.grad(loss.sum(), stuck)[0].tolist() == [[0.0, 0.0]]


def test_value_loss_without_clip_and_its_gradient():
    generator = torch.Generator().manual_seed(7)
    values, old, returns = torch.randn(3, 2, 9, generator=generator, dtype=torch.float64).unbind(0)
    np.testing.assert_allclose(value_loss(values, old, returns), 0.5 * (values - returns) ** 2, rtol=1e-12)
    values.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda v: value_loss(v, old, returns, value_clip=0.3), values)
    old.requires_grad_(True)
    returns.requires_grad_(True)
    loss = value_loss(values, old, returns, value_clip=0.3).sum()
    assert torch.autograd.grad(loss, (old, returns), allow_unused=True) == (None, None)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("microbatch_size", [1, 3, 8])
def test_mean_over_microbatches_of_unequal_size(microbatch_size, dtype, tolerance):
    """Microbatch sums over the whole's count give the whole's gradient; 8 images in threes leave two."""
    generator = torch.Generator().manual_seed(8)
    weights = torch.randn(6, 12, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(True)
    inputs = torch.randn(8, 6, generator=generator, dtype=torch.float64).to(dtype)
    drawn = torch.randint(0, 3, (8, 4, 1), generator=generator)
    advantages = torch.randn(8, 4, generator=generator, dtype=torch.float64).to(dtype)

    def log_probs_of(rows):
        log_pi = torch.log_softmax((inputs[rows] @ weights).view(-1, 4, 3), -1)
        return log_pi.gather(-1, drawn[rows])[..., 0]

    with torch.no_grad():
        old = log_probs_of(slice(None)) + 0.2 * advantages.roll(1, 0)

    def gradient(size):
        total = torch.zeros_like(weights)
        for start in range(0, 8, size):
            rows = slice(start, start + size)
            loss = ppo_loss(log_probs_of(rows), old[rows], advantages[rows], dual_clip=3.0, **CLIP).loss
            total += torch.autograd.grad(loss.sum() / advantages.numel(), weights)[0]
        return total

    whole = gradient(8)
    assert (gradient(microbatch_size) - whole).abs().max() / whole.abs().max() < tolerance


def test_losses_of_a_permuted_batch_are_permuted():
    generator = torch.Generator().manual_seed(9)
    log_probs, old, advantages = torch.randn(3, 5, 7, generator=generator).unbind(0)
    order = torch.tensor([4, 2, 0, 1, 3])
    here = ppo_loss(log_probs, old, advantages, dual_clip=3.0, **CLIP)
    there = ppo_loss(log_probs[order], old[order], advantages[order], dual_clip=3.0, **CLIP)
    for name in ("loss", "ratio", "clipped", "approx_kl"):
        assert torch.equal(getattr(here, name)[order], getattr(there, name))


def test_truncated_importance_weights():
    sampler = f64([-1.0, -1.0, -1.0, -200.0])
    old = sampler + f64([math.log(0.1), math.log(1.5), math.log(4.0), 1000.0])
    np.testing.assert_allclose(truncated_importance_weights(old, sampler), [[0.1, 1.5, 2.0, 2.0]], rtol=1e-12)
    assert truncated_importance_weights(old, sampler, cap=3.0)[0, 2].item() == 3.0
    assert not truncated_importance_weights(old.requires_grad_(True), sampler).requires_grad
    assert truncated_importance_weights(f64([math.nan]), f64([0.0])).isnan().all()


def test_importance_weights_correct_a_sampler_that_rounds_differently():
    """Weighted by old / sampler, an expectation under the sampler becomes one under the old policy."""
    generator = torch.Generator().manual_seed(10)
    old = torch.log_softmax(torch.randn(1, 9, generator=generator, dtype=torch.float64), -1)
    sampler = torch.log_softmax(old + 0.05 * torch.randn(1, 9, generator=generator, dtype=torch.float64), -1)
    reward = torch.randn(1, 9, generator=generator, dtype=torch.float64)
    weights = truncated_importance_weights(old, sampler)
    assert weights.max() < 2
    corrected = (sampler.exp() * weights * reward).sum()
    torch.testing.assert_close(corrected, (old.exp() * reward).sum(), rtol=1e-12, atol=1e-14)
