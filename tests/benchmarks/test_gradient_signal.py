"""The yardstick of gradients, on gradients whose signal and noise are known."""

import math
from itertools import permutations
from pathlib import Path

import pytest
import torch
from scripts import load_script

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gradient_signal.py"
SIZE = 400


@pytest.fixture(scope="module")
def script():
    return load_script(SCRIPT)


def drawn(generator: torch.Generator, batches: int, cosine: float, length: float, noise: float) -> tuple:
    """g and r [K, P]: r is the signal, of length 1, and noise; g has another mean, and half of r's noise."""
    signal, aside = torch.linalg.qr(torch.randn(SIZE, 2, generator=generator, dtype=torch.float64))[0].T
    mean = length * (cosine * signal + math.sqrt(1 - cosine**2) * aside)
    of_r = torch.randn(batches, SIZE, generator=generator) * 2 / math.sqrt(SIZE)
    of_g = torch.randn(batches, SIZE, generator=generator) * noise / math.sqrt(SIZE)
    return mean + 0.5 * of_r + of_g, signal + of_r


@pytest.mark.parametrize(("cosine", "length", "noise"), [
    (1.0, 1.0, 1.0), (0.6, 1.0, 0.5), (0.6, 3.0, 0.5), (0.9, 0.5, 0.0), (-0.8, 1.0, 0.5)
])  # fmt: skip
def test_the_closed_form(script, cosine, length, noise):
    """g's power is |m|^2 + (2 / 2)^2 + noise^2; the noise it shares with r of its batch must not count."""
    g, r = drawn(torch.Generator().manual_seed(0), 1500, cosine, length, noise)
    value, error = script.rho(g, r)
    expected = math.copysign(cosine**2 * length**2 / (length**2 + 1 + noise**2), cosine)
    assert value == pytest.approx(expected, abs=3.5 * error) and error < 0.05 * abs(expected)
    assert script.rho(7 * g, 0.1 * r) == pytest.approx((value, error)), "lengths do not matter"


def test_against_the_sums_written_out(script):
    g, r = drawn(torch.Generator().manual_seed(1), 5, 0.7, 1.0, 0.5)
    pairs = list(permutations(range(5), 2))
    along = sum(float(g[i] @ r[j]) for i, j in pairs) / len(pairs)
    signal = sum(float(r[i] @ r[j]) for i, j in pairs) / len(pairs)
    power = sum(float(row @ row) for row in g) / 5
    assert along > 0 and script.rho(g, r)[0] == pytest.approx(along**2 / (power * signal))
    assert script.rho(r, r)[0] == pytest.approx(script.signal_share(r))


def test_the_standard_error_is_the_spread_of_repetitions(script):
    generator = torch.Generator().manual_seed(2)
    found = torch.tensor([script.rho(*drawn(generator, 20, 0.7, 1.0, 0.5)) for _ in range(300)])
    spread = float(found[:, 0].std())
    assert float(found[:, 1].square().mean().sqrt()) == pytest.approx(spread, rel=0.2)
    expected = 0.49 / (1 + 1 + 0.25)
    assert float(found[:, 0].mean()) == pytest.approx(expected, abs=0.012)


def test_too_little_to_tell(script):
    g = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])
    assert all(map(math.isnan, script.rho(g, g))), "the batches contradict each other"
    value, error = script.rho(torch.ones(2, 3), torch.ones(2, 3))
    assert value == pytest.approx(1) and math.isnan(error)
