"""Runs with top-k: ratios start at 1, what is left out is logged, and an entropy penalty stays bounded."""

import math

import pytest
import torch
from tiny_models import TINY
from tiny_trainer import TINY_CONFIG, NoWriter, changed, tiny_trainer

from dalle_ppo.models.family import token_scores
from dalle_ppo.runs.checkpoints import latest_checkpoint, load_checkpoint
from dalle_ppo.training.guards import check_collapse

K, T, V = 4, TINY.num_image_tokens, TINY.num_codes
GUARDED = changed(TINY_CONFIG, {"policy.top_k": K, "actor.min_entropy": 1.0})


@pytest.mark.parametrize("recomputed", [True, False])
def test_a_run_learns_and_its_first_ratios_are_1(recomputed):
    config = changed(TINY_CONFIG, {"policy.top_k": K, "update.recompute_log_probs": recomputed})
    trainer = tiny_trainer(config)
    before = trainer.actor.module.lm_head.weight.detach().clone()
    records = [trainer.iterate(NoWriter()) for _ in range(3)]
    for record in records:
        assert record["ratio_first_minibatch_max_deviation"] < 1e-4
        assert record["sampler_log_prob_gap"] < 1e-4
        assert 0 < record["mass_outside"] < 0.5 and 0 < record["entropy"] <= T * math.log(K)
    # Not recomputed, it is the sampler's policy against the reference in the training forward pass.
    assert all(abs(records[0][name]) <= (0 if recomputed else 1e-5) for name in ("kl", "kl_full"))
    assert records[2]["kl"] > 0 and records[2]["kl_full"] > 0
    assert not torch.equal(trainer.actor.module.lm_head.weight, before)


def test_without_top_k_there_is_nothing_to_log():
    record = tiny_trainer(TINY_CONFIG).iterate(NoWriter())
    assert record["kl_full"] is None and record["mass_outside"] is None


def test_the_policy_is_saved_with_its_top_k(tmp_path):
    config = changed(TINY_CONFIG, {"policy.top_k": K, "num_iterations": 1, "evaluation.num_captions": 2})
    tiny_trainer(config, tmp_path).run()
    assert load_checkpoint(latest_checkpoint(tmp_path)).state["policy_settings"]["top_k"] == K


def test_an_entropy_penalty_with_the_kl_ends_at_a_power_of_the_reference_on_the_set():
    """`kl_coef KL + |e| H` on one set is smallest at ref^(kl_coef / (kl_coef - |e|)), renormalised on it.

    On different sets there would be no such bound: mass could leave where only one of the terms sees it.
    """
    kl_coef, penalty = 0.26, 0.215
    ref = torch.tensor([0.3, 0.25, 0.2, 0.1, 0.1, 0.05], dtype=torch.float64)
    kept, tokens = torch.tensor([[[0, 2, 1]]], dtype=torch.int16), torch.tensor([[0]])
    logits = torch.zeros(1, 1, 6, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([logits], lr=4.0)
    for _ in range(1500):
        scores = token_scores(logits.log_softmax(-1), tokens, ref.log()[None, None], True, kept=kept)
        optimizer.zero_grad()
        (kl_coef * scores.kl + penalty * scores.entropy).sum().backward()
        optimizer.step()
    power = ref[[0, 2, 1]] ** (kl_coef / (kl_coef - penalty))
    found = logits.detach()[0, 0, [0, 2, 1]].softmax(-1)
    torch.testing.assert_close(found, power / power.sum(), rtol=1e-5, atol=1e-6)
    assert logits.detach()[0, 0, 3:].abs().max() < 1e-9


def test_the_guard_counts_only_the_entropy_of_the_kept_codes():
    """A policy that always draws one code of its two has collapsed, however it spreads the mass outside."""
    log_pi = torch.full((1, T, V), 0.5 / (V - 1)).log()
    log_pi[..., 0] = math.log(0.5)
    log_pi[..., 1] -= 9.0
    log_pi = log_pi.log_softmax(-1)
    kept, tokens = (
        torch.tensor([0, 1], dtype=torch.int16).expand(1, T, 2),
        torch.zeros(1, T, dtype=torch.long),
    )
    on_set, on_all = (
        token_scores(log_pi, tokens, None, True, kept=k).entropy.sum().item() for k in (kept, None)
    )
    assert on_all > 10 and on_set < 0.1
    check_collapse({"kl": 0.0, "entropy": on_all}, GUARDED, 0)
    with pytest.raises(ValueError, match=r"collapsed: its entropy is .* below actor\.min_entropy = 1"):
        check_collapse({"kl": 0.0, "entropy": on_set}, GUARDED, 0)
