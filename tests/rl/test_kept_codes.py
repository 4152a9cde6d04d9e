"""Sets of k codes and the distribution on them, against plain Python over every code."""

import math

import pytest
import torch

from dalle_ppo.rl.log_pi import kept_codes, log_pi_on, mass_outside, places_in


def random_log_pi(*shape: int) -> torch.Tensor:
    """Log-probs with many ties: logits are whole numbers."""
    logits = torch.randint(0, 4, shape, generator=torch.Generator().manual_seed(1)).double()
    return logits.log_softmax(-1)


@pytest.mark.parametrize("k", [1, 3, 9, 10, 99])
def test_exactly_k_codes_are_kept_and_ties_go_to_the_lower_number(k):
    log_pi = random_log_pi(20, 10)
    for row, kept in zip(log_pi.tolist(), kept_codes(log_pi, k).tolist(), strict=True):
        assert kept == sorted(range(10), key=lambda code: (-row[code], code))[:k]


def test_the_drawn_code_replaces_the_least_likely_only_where_it_is_missing():
    log_pi = torch.tensor([[0.4, 0.3, 0.2, 0.1]] * 4).log()
    kept = kept_codes(log_pi, 2, torch.tensor([0, 1, 2, 3]))
    assert kept.tolist() == [[0, 1], [0, 1], [0, 2], [0, 3]]
    assert places_in(kept, torch.tensor([0, 1, 2, 3])).tolist() == [0, 1, 1, 1]


def test_the_codes_of_dalle_mini_fit_and_more_than_int16_holds_is_refused():
    last = kept_codes(torch.arange(16384.0)[None], 3)
    assert last.dtype == torch.int16 and last.tolist() == [[16383, 16382, 16381]]
    assert kept_codes(torch.arange(32768.0), 1).tolist() == [32767]
    with pytest.raises(ValueError, match=r"policy\.top_k is 3.*at most 32768 codes.*has 32769.*to null"):
        kept_codes(torch.zeros(1, 32769), 3)


def test_the_distribution_on_a_set_and_the_mass_outside():
    log_pi = random_log_pi(20, 10)
    kept = kept_codes(log_pi, 4)
    on_kept, outside = log_pi_on(log_pi, kept).tolist(), mass_outside(log_pi, kept).tolist()
    for row, codes, found, missed in zip(log_pi.exp().tolist(), kept.tolist(), on_kept, outside, strict=True):
        mass = math.fsum(row[code] for code in codes)
        assert found == pytest.approx([math.log(row[code] / mass) for code in codes], abs=1e-12)
        assert missed == pytest.approx(1 - mass, abs=1e-12)
    everything = kept_codes(log_pi, 10)
    assert mass_outside(log_pi, everything).eq(0).all()
