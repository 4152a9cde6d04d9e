"""Intervals against scipy, statsmodels and simulation."""

import numpy as np
import pytest
import scipy.stats
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.proportion import proportion_confint

from dalle_ppo.evaluation.intervals import (
    MetricTable,
    bootstrap,
    clopper_pearson,
    constant_bounds,
    deviation,
    noise_correlation,
    percentile_interval,
    rate_bounds,
    sign_test,
    variance_saved,
    weighted_medians,
)


@pytest.mark.parametrize(("events", "trials"), [(0, 40), (1, 40), (7, 40), (39, 40), (40, 40), (3, 4000)])
def test_clopper_pearson_equals_scipy(events, trials):
    expected = scipy.stats.binomtest(events, trials).proportion_ci(0.95, method="exact")
    assert clopper_pearson(events, trials) == pytest.approx((expected.low, expected.high), abs=1e-10)


@pytest.mark.parametrize(("events", "trials"), [(0, 40), (7, 40), (40, 40), (0.3, 811.5), (17.25, 60.5)])
def test_clopper_pearson_equals_statsmodels_at_effective_sample_sizes_too(events, trials):
    expected = proportion_confint(events, trials, method="beta")
    assert clopper_pearson(events, trials) == pytest.approx(expected, abs=1e-10)


def test_clustered_bounds_equal_those_from_statsmodels_parts():
    """The cluster-robust variance of a mean gives the effective sample size, the exact bounds do the rest."""
    rng = np.random.default_rng(7)
    index = np.repeat(np.arange(50), rng.integers(1, 7, 50))
    flags = (rng.random(len(index)) < rng.beta(0.5, 2, 50)[index]).astype(float)
    fit = OLS(flags, np.ones(len(flags))).fit(cov_type="cluster", cov_kwds={"groups": index})
    rate, variance = float(fit.params[0]), float(fit.bse[0]) ** 2
    quantiles = scipy.stats.t.ppf(0.975, [len(flags) - 1, 49])
    effective = rate * (1 - rate) / variance * (quantiles[0] / quantiles[1]) ** 2
    assert 50 < effective < 0.8 * len(flags), "neither captions nor images count"
    expected = proportion_confint(rate * effective, effective, method="beta")
    assert rate_bounds(flags, index) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("trials", [1, 12, 60, 200])
@pytest.mark.parametrize("rate", [0.002, 0.02, 0.3, 0.5, 0.97])
def test_exact_bounds_cover_by_enumeration(rate, trials):
    """The sum of the binomial law over all outcomes whose bounds hold the truth is the exact coverage."""
    coverage = sum(
        scipy.stats.binom.pmf(events, trials, rate)
        for events in range(trials + 1)
        if clopper_pearson(events, trials)[0] <= rate <= clopper_pearson(events, trials)[1]
    )
    assert 0.95 <= coverage <= 1 + 1e-12


def test_rate_bounds_are_exact_with_one_image_a_caption():
    flags = np.array([1.0] * 3 + [0.0] * 37)
    assert rate_bounds(flags, np.arange(40)) == clopper_pearson(3, 40)


def test_rate_bounds_with_copied_images_count_captions_not_images():
    """Ten identical images of a caption carry no more information than one."""
    flags = np.array([1.0] * 12 + [0.0] * 48)
    single, copied = (
        rate_bounds(flags, np.arange(60)),
        rate_bounds(np.repeat(flags, 10), np.repeat(np.arange(60), 10)),
    )
    naive = clopper_pearson(120, 600)
    assert copied[1] - copied[0] == pytest.approx(single[1] - single[0], rel=0.06)
    assert copied[1] - copied[0] > 2.5 * (naive[1] - naive[0])


def test_rate_bounds_cover_clustered_data():
    rng = np.random.default_rng(1)
    captions, samples, hits = 60, 4, 0
    for _ in range(500):
        rates = rng.beta(0.5, 4.5, captions)
        flags = (rng.random((captions, samples)) < rates[:, None]).astype(float).ravel()
        low, high = rate_bounds(flags, np.repeat(np.arange(captions), samples))
        hits += low <= 0.1 <= high
    assert hits / 500 >= 0.945


def test_rate_bounds_without_any_event_count_each_caption_once():
    low, high = rate_bounds(np.zeros(200), np.repeat(np.arange(50), 4))
    assert low == 0
    assert high == pytest.approx(1 - 0.025 ** (1 / 50))


def test_bootstrap_covers_the_paired_difference():
    """Captions have their own level, images scatter around it: the intervals cover 95 %."""
    rng = np.random.default_rng(2)
    captions, samples, hits, repeats = 150, 2, 0, 500
    index = np.repeat(np.arange(captions), samples)
    for repeat in range(repeats):
        level, gain = rng.normal(0, 2, captions), rng.normal(0.5, 1, captions)
        reference = level[index] + rng.normal(0, 1, len(index))
        policy = level[index] + gain[index] + rng.normal(0, 1, len(index))
        tables = [mean_table(reference, index), mean_table(policy, index)]
        draws = bootstrap(tables, np.zeros(captions, dtype=int), 300, seed=repeat)
        low, high = percentile_interval(draws[:, 1, 0] - draws[:, 0, 0], captions)
        hits += low <= 0.5 <= high
    # 500 repeats: the estimate of a coverage of 95 % scatters by 1 point.
    assert 0.93 <= hits / repeats <= 0.97


def test_the_percentile_interval_holds_the_central_95_percent():
    draws = np.append(np.random.default_rng(8).permutation(np.arange(1001.0)), [np.nan] * 1000)
    assert percentile_interval(draws, 10**9) == pytest.approx([25, 975])
    assert percentile_interval(draws, 1) is None, "one caption"
    assert percentile_interval(np.append(draws, [np.nan] * 2), 2) is None, "mostly unknown"


@pytest.mark.parametrize("captions", [5, 8, 30])
def test_of_few_captions_the_interval_of_a_mean_is_students(captions):
    """Draws of a mean scatter by the population's deviation over root n; Student takes the sample's."""
    values = np.random.default_rng(captions).normal(size=captions)
    draws = scipy.stats.norm.ppf(np.linspace(0, 1, 200_001)[1:-1]) * values.std() / np.sqrt(captions)
    expected = scipy.stats.t.interval(0.95, captions - 1, scale=scipy.stats.sem(values))
    assert percentile_interval(draws, captions) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("up", "down"), [(0, 4), (0, 6), (3, 12), (9, 9), (40, 21)])
def test_the_sign_test_equals_scipy(up, down):
    reference = np.concatenate([np.zeros(up), np.ones(down), np.full(50, 0.5), [np.nan]])
    policy = np.concatenate([np.ones(up), np.full(down, 0.5), np.full(51, 0.5)])
    expected = scipy.stats.binomtest(up, up + down).pvalue
    assert sign_test(reference, policy) == pytest.approx(expected, abs=1e-12)


def test_the_sign_test_of_no_change_is_sure_of_nothing():
    assert sign_test(np.ones(5), np.ones(5)) == 1


def mean_table(values, index):
    """A table of one metric, the mean."""
    return MetricTable(
        names=("reward_mean",),
        values={"reward_mean": values},
        sums=np.bincount(index, values)[:, None],
        counts=np.bincount(index).astype(float)[:, None],
        reward=values,
        caption_index=index,
    )


def test_bootstrap_equals_scipy_on_one_image_a_caption():
    rng = np.random.default_rng(3)
    reference, policy = rng.gamma(2, 1, 150), rng.gamma(2.4, 1, 150)
    index = np.arange(150)
    draws = bootstrap([mean_table(reference, index), mean_table(policy, index)], index * 0, 20_000, seed=0)
    ours = np.quantile(draws[:, 1] - draws[:, 0], [0.025, 0.975], axis=0)
    for k, statistic in enumerate((np.mean, np.median)):
        expected = scipy.stats.bootstrap(
            (reference, policy),
            lambda a, b, axis, f=statistic: f(b, axis=axis) - f(a, axis=axis),
            paired=True,
            n_resamples=20_000,
            method="percentile",
            rng=np.random.default_rng(1),
        ).confidence_interval
        assert ours[:, k] == pytest.approx([expected.low, expected.high], abs=0.02)


def test_weighted_medians_equal_the_median_of_the_repeated_values():
    rng = np.random.default_rng(4)
    values = np.sort(rng.normal(size=21).round(1))
    weights = rng.integers(0, 4, (50, 21)).astype(float)
    expected = [np.median(np.repeat(values, row.astype(int))) for row in weights]
    padded = np.append(values, np.nan)
    assert weighted_medians(padded, np.hstack([weights, np.ones((50, 1))])) == pytest.approx(expected)


def test_pairing_saves_variance_only_where_the_sides_move_together():
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=20_000), rng.normal(size=20_000)
    assert variance_saved(a, a) == pytest.approx(1)
    assert variance_saved(a, b) == pytest.approx(0, abs=0.03)
    # Var(b - a) = 2 (1 - rho) with rho = 0.8.
    assert variance_saved(a, 0.8 * a + 0.6 * b) == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_values_have_no_deviation_whatever_the_rounding(dtype):
    values = np.full(1000, 0.1, dtype)
    assert np.std(values) > 0, "the mistake"
    assert deviation(values) == 0 == deviation(np.append(values, np.nan)) == deviation(values[:0])
    assert variance_saved(values.astype(np.float64), values.astype(np.float64) + 0.1) is None


def test_the_deviation_of_other_values_is_numpys():
    values = np.random.default_rng(10).normal(100, 1e-3, 50).astype(np.float32)
    assert deviation(np.append(values, np.nan)) == pytest.approx(np.std(values.astype(np.float64)), rel=1e-12)
    assert deviation(np.array([0.0, 1e-30])) == pytest.approx(0.5e-30), "small, but not beside its mean"


def test_noise_correlation_ignores_what_the_caption_alone_explains():
    rng = np.random.default_rng(6)
    index = np.repeat(np.arange(3000), 2)
    level, shared = rng.normal(0, 5, 3000)[index], rng.normal(size=6000)
    independent = [level + rng.normal(size=6000) for _ in range(2)]
    together = [level + shared + rng.normal(size=6000) for _ in range(2)]
    assert noise_correlation(*independent, index) == pytest.approx(0, abs=0.06)
    assert noise_correlation(*together, index) == pytest.approx(0.5, abs=0.06)
    assert noise_correlation(*independent, np.arange(6000)) is None


def test_bounds_of_equal_captions_stay_in_the_range_and_cover():
    """Captions are 1 with probability p, else anything down to 0: all n are 1 with p ** n."""
    unseen = 1 - 0.025 ** (1 / 30)
    equal = np.ones(30)
    assert constant_bounds(equal, 1.0, 0, 1) == pytest.approx((1 - unseen, 1))
    assert constant_bounds(equal / 2, 0.5, 0, 1) == pytest.approx((0.5 - unseen / 2, 0.5 + unseen / 2))
    assert constant_bounds(-equal, -1.0, -1, 1) == pytest.approx((-1, -1 + 2 * unseen))
    assert (1 - unseen) ** 30 == pytest.approx(0.025), "a mean below the bound would seldom look like this"


def test_bounds_of_strata_with_different_values_allow_for_the_farthest_move():
    """A caption of the stratum at 1 moves the mean by a whole caption, not by the mean's own 0.75."""
    unseen = 1 - 0.025 ** (1 / 40)
    values = np.repeat([1.0, 0.5], 20)
    assert constant_bounds(values, 0.75, 0, 1) == pytest.approx((0.75 - unseen, 0.75 + unseen / 2))
    assert constant_bounds(np.repeat([1.0, 0.0], [39, 1]), 39 / 40, 0, 1)[1] == 1
