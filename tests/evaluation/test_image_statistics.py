"""Image statistics against pictures whose numbers are known without them."""

import numpy as np
import pytest
from PIL import Image

from dalle_ppo.evaluation.image_statistics import (
    colourfulness,
    distinct_codes,
    high_frequency_share,
    image_statistics,
    jpeg_bytes,
    total_variation,
)

SIDE = 32
ROWS, COLUMNS = np.mgrid[:SIDE, :SIDE]


def grey(values):
    """One picture, 0..255 [1, H, W, 3], of a brightness [H, W]."""
    return np.repeat(np.asarray(values, dtype=np.float32)[None, :, :, None], 3, axis=3)


def plain(red, green, blue):
    return np.broadcast_to(np.array([red, green, blue], dtype=np.float32), (1, SIDE, SIDE, 3))


CHECKS = grey(255 * ((ROWS + COLUMNS) % 2))
STRIPES = grey(255 * (COLUMNS % 2))
FLAT = plain(90, 90, 90)


def wave(cycles):
    return grey(127 + 100 * np.sin(2 * np.pi * cycles * COLUMNS / SIDE))


def test_total_variation_of_patterns():
    assert total_variation(CHECKS) == 1 and total_variation(STRIPES) == 0.5 and total_variation(FLAT) == 0
    ramp = grey(np.broadcast_to(np.arange(SIDE), (SIDE, SIDE)))
    assert total_variation(ramp) == pytest.approx(1 / 255 / 2)


@pytest.mark.parametrize(("cycles", "share"), [(1, 0), (7, 0), (8, 0), (9, 1), (16, 0), (15, 1)])
def test_a_wave_is_fine_detail_above_a_quarter_cycle_a_pixel(cycles, share):
    """At 16 cycles the sine is sampled at its zeros only: a flat picture."""
    assert high_frequency_share(wave(cycles)) == pytest.approx(share, abs=1e-4)


def test_white_noise_has_the_share_of_the_area_outside_the_circle():
    noise = np.random.default_rng(0).normal(128, 20, (40, SIDE, SIDE, 1)).repeat(3, axis=3)
    assert high_frequency_share(noise).mean() == pytest.approx(1 - np.pi / 16, abs=0.01)
    assert high_frequency_share(CHECKS) == pytest.approx(1) and high_frequency_share(FLAT) == 0


def test_colourfulness_of_plain_colours():
    """Red: opponents 255 and 127.5, no spread; 0.3 of their length."""
    assert colourfulness(FLAT) == colourfulness(CHECKS) == 0
    assert colourfulness(plain(255, 0, 0)) == pytest.approx(0.3 * 255 * 1.25**0.5)
    halves = np.where(COLUMNS[None, :, :, None] < SIDE // 2, plain(255, 0, 0), plain(0, 255, 0))
    # red - green is 255 or -255: spread 255, mean 0; the other opponent is 127.5 everywhere.
    assert colourfulness(halves) == pytest.approx(255 + 0.3 * 127.5)
    # A third green beside magenta, about the most there is: opponents differ by 510 and 255.
    third = np.where(COLUMNS[None, :, :, None] % 3 == 0, plain(0, 255, 0), plain(255, 0, 255))
    share = (COLUMNS % 3 == 0).mean()
    spread, mean = 2 * np.sqrt(share * (1 - share)), 1 - 2 * share
    expected = 255 * 1.25**0.5 * (spread + 0.3 * mean)
    assert colourfulness(third) == pytest.approx(expected) and 295 < expected < 300


def test_jpeg_bytes_are_the_size_of_the_file(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg", quality=75)
    assert jpeg_bytes(noise) == (tmp_path / "a.jpg").stat().st_size
    assert jpeg_bytes(noise) > jpeg_bytes(FLAT[0].astype(np.uint8)) + 400, "its tables are 600 bytes"


def test_distinct_codes_are_counted():
    tokens = np.array([[3, 3, 3, 3], [1, 2, 1, 2], [4, 3, 2, 1]])
    assert distinct_codes(tokens).tolist() == [1, 2, 4]


def test_noise_raises_all_of_them_and_batches_change_none():
    rng = np.random.default_rng(1)
    clean = wave(2).repeat(5, axis=0).astype(np.uint8)
    noisy = np.clip(clean + rng.normal(0, 40, clean.shape), 0, 255).astype(np.uint8)
    tokens = rng.integers(0, 50, (5, 16))
    before = image_statistics(clean, np.zeros_like(tokens))
    after = image_statistics(noisy, tokens)
    assert len(before) == 5 and all((after[name] > before[name]).all() for name in before)
    single = [image_statistics(noisy[n : n + 1], tokens[n : n + 1]) for n in range(5)]
    for name, values in after.items():
        assert values == pytest.approx(np.concatenate([one[name] for one in single]), rel=1e-5)
