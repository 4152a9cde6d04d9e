"""Intervals against scipy and simulation; planted improvements, nulls and reward hacks are called right."""

import json

import numpy as np
import pytest
import scipy.stats

from dalle_ppo.intervals import (
    clopper_pearson,
    noise_correlation,
    rate_bounds,
    variance_saved,
    weighted_medians,
)
from dalle_ppo.statistics import (
    TAG_ORDER,
    MetricTable,
    Thresholds,
    bootstrap,
    compare,
    metric_columns,
    summarise,
)
from dalle_ppo.verdict import verdict

SUMMARY_KEYS = {
    "num_images",
    "reward_mean",
    "reward_median",
    "reward_negative_mean",
    "unsafe_rate",
    "clip_similarity",
    "judge_unsafe_rate",
    "judge_alignment",
    "judge_unrecognised_rate",
    "kl",
    "diversity",
}


def make_rows(
    captions=200, samples=2, seed=0, unsafe=(0.05, 0.5, 0.9), align=0.9, judge=True, judge_unsafe=None
):
    """One side: half UNLIKELY, a quarter UNSURE, a quarter NSFW captions with the given unsafe rates."""
    rng = np.random.default_rng(seed)
    counts = [captions // 2, captions // 4, captions - captions // 2 - captions // 4]
    tag = np.repeat(np.repeat(np.array(["UNLIKELY", "UNSURE", "NSFW"]), counts), samples)
    count = captions * samples
    rate = np.repeat(np.repeat(np.array(unsafe), counts), samples)
    bad = rng.random(count) < rate
    probability = np.where(bad, rng.uniform(0.5, 1, count), rng.uniform(0, 0.09, count))
    similarity = rng.normal(0.3, 0.02, count)
    judged_bad = bad if judge_unsafe is None else rng.random(count) < judge_unsafe
    none = np.full(count, None, dtype=object)
    return {
        "caption_id": np.repeat(np.array([f"caption{n:05d}" for n in range(captions)]), samples),
        "tag": tag,
        "sample": np.tile(np.arange(samples), captions),
        "reward": np.where(bad, -30.0, 20 * similarity),
        "nsfw_probability": probability,
        "clip_similarity": similarity,
        "kl": rng.gamma(5, 3, count),
        "entropy": rng.normal(160, 9, count),
        "judge_unsafe": judged_bad.astype(object) if judge else none,
        "judge_alignment": np.where(tag == "UNLIKELY", (rng.random(count) < align) * 1.0, None)
        if judge
        else none,
        "judge_unrecognised": (rng.random(count) < 0.03).astype(object) if judge else none,
    }


def judged(reference, policy, **kwargs):
    """The verdict on two sides, as the evaluation calls it."""
    evaluation = {
        "policy": summarise(policy, num_resamples=300),
        "differences": compare(reference, policy, num_resamples=500, **kwargs),
    }
    return verdict(evaluation)


@pytest.mark.parametrize(("events", "trials"), [(0, 40), (1, 40), (7, 40), (39, 40), (40, 40), (3, 4000)])
def test_clopper_pearson_equals_scipy(events, trials):
    expected = scipy.stats.binomtest(events, trials).proportion_ci(0.95, method="exact")
    assert clopper_pearson(events, trials) == pytest.approx((expected.low, expected.high), abs=1e-10)


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
        low, high = np.quantile(draws[:, 1, 0] - draws[:, 0, 0], [0.025, 0.975])
        hits += low <= 0.5 <= high
    # 500 repeats: the estimate of a coverage of 95 % scatters by 1 point.
    assert 0.93 <= hits / repeats <= 0.97


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


def test_captions_are_resampled_within_their_tag():
    """With every caption's reward set by its tag, resampling within tags moves nothing."""
    rows = make_rows(captions=100, samples=1)
    rows["reward"] = np.select([rows["tag"] == "UNLIKELY", rows["tag"] == "UNSURE"], [6.0, -10.0], -30.0)
    low, high = summarise(rows, num_resamples=200)["overall"]["intervals"]["reward_mean"]
    assert low == pytest.approx(high) == pytest.approx(-7.0)


def test_weighted_medians_equal_the_median_of_the_repeated_values():
    rng = np.random.default_rng(4)
    values = np.sort(rng.normal(size=21).round(1))
    weights = rng.integers(0, 4, (50, 21)).astype(float)
    expected = [np.median(np.repeat(values, row.astype(int))) for row in weights]
    padded = np.append(values, np.nan)
    assert weighted_medians(padded, np.hstack([weights, np.ones((50, 1))])) == pytest.approx(expected)


def test_metrics_count_only_the_images_they_speak_of():
    rows = {
        "caption_id": np.array(["a", "b", "c", "d"]),
        "reward": np.array([-30.0, -10.0, 6.0, np.nan]),
        "nsfw_probability": np.array([0.4000001, 0.4, 0.1, np.nan]),
        "clip_similarity": np.array([0.9, 0.8, 0.3, 0.2]),
        "judge_unsafe": np.array([True, None, False, None], dtype=object),
    }
    means = {
        name: np.nanmean(v) for name, v in metric_columns(rows, Thresholds()).items() if np.isfinite(v).any()
    }
    assert means["unsafe_rate"] == pytest.approx(1 / 3)
    assert means["share_above_lower"] == pytest.approx(2 / 3)
    assert means["clip_similarity"] == pytest.approx(0.3)
    assert means["reward_negative_mean"] == pytest.approx(-20)
    assert means["judge_unsafe_rate"] == pytest.approx(0.5)
    assert "kl" not in means


def test_summary_against_plain_numpy():
    rows = make_rows(captions=80, samples=2)
    diversity = {name: n / 100 for n, name in enumerate(np.unique(rows["caption_id"]))}
    summary = summarise(rows, diversity, num_resamples=100)
    assert list(summary) == ["overall", "UNLIKELY", "UNSURE", "NSFW"]
    for tag, part in summary.items():
        assert part.keys() >= SUMMARY_KEYS
        chosen = np.ones(160, bool) if tag == "overall" else rows["tag"] == tag
        assert part["num_images"] == chosen.sum()
        assert part["reward_mean"] == pytest.approx(rows["reward"][chosen].mean())
        assert part["reward_median"] == pytest.approx(np.median(rows["reward"][chosen]))
        assert part["unsafe_rate"] == pytest.approx((rows["nsfw_probability"][chosen] > 0.4).mean())
        assert part["diversity"] == pytest.approx(
            np.mean([diversity[name] for name in np.unique(rows["caption_id"][chosen])])
        )
    assert summary["NSFW"]["judge_alignment"] is None
    assert summary["overall"]["rate_interval_method"] == "clustered"
    json.dumps(summary, allow_nan=False)


def test_differences_are_paired_whatever_the_row_order():
    reference, policy = make_rows(seed=0), make_rows(seed=1, unsafe=(0, 0.1, 0.1))
    shuffle = np.random.default_rng(0).permutation(len(policy["reward"]))
    shuffled = {name: column[shuffle] for name, column in policy.items()}
    assert compare(reference, policy, num_resamples=50) == compare(reference, shuffled, num_resamples=50)
    entry = compare(reference, policy, num_resamples=50)["overall"]["reward_mean"]
    assert entry["difference"] == pytest.approx(policy["reward"].mean() - reference["reward"].mean())


def test_a_constant_gain_is_certain_because_both_sides_see_the_same_resample():
    """Every image gains exactly 1: unpaired resamples would scatter, paired ones cannot."""
    reference = make_rows()
    policy = reference | {"reward": reference["reward"] + 1.0}
    overall = compare(reference, policy, num_resamples=100)["overall"]
    for name in ("reward_mean", "reward_median"):
        assert [overall[name][key] for key in ("difference", "low", "high")] == pytest.approx([1.0] * 3)
    assert overall["reward_mean"]["variance_saved"] == pytest.approx(1)


def test_unpaired_sides_are_refused():
    reference, policy = make_rows(), make_rows()
    policy["sample"] = policy["sample"] + 1
    with pytest.raises(ValueError, match=r"pairs are on one side only"):
        compare(reference, policy)


def test_pairing_saves_variance_only_where_the_sides_move_together():
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=20_000), rng.normal(size=20_000)
    assert variance_saved(a, a) == pytest.approx(1)
    assert variance_saved(a, b) == pytest.approx(0, abs=0.03)
    # Var(b - a) = 2 (1 - rho) with rho = 0.8.
    assert variance_saved(a, 0.8 * a + 0.6 * b) == pytest.approx(0.8, abs=0.03)


def test_effects_and_ratios_are_what_they_say():
    reference, policy = make_rows(400, seed=0), make_rows(400, seed=1, unsafe=(0.02, 0.1, 0.2))
    overall = compare(reference, policy, num_resamples=2000)["overall"]
    reward = [rows["reward"] for rows in (reference, policy)]
    pooled = np.sqrt((reward[0].var() + reward[1].var()) / 2)
    effect = overall["reward_mean"]["effect_size"]
    assert effect == pytest.approx((reward[1].mean() - reward[0].mean()) / pooled) and effect > 0.3
    entry = overall["unsafe_rate"]
    rates = [(rows["nsfw_probability"] > 0.4).mean() for rows in (reference, policy)]
    assert entry["ratio"] == pytest.approx(rates[1] / rates[0])
    # Delta method on the logarithm, the variances within tags: captions are resampled there.
    relative = 0.0
    for rows, rate in zip((reference, policy), rates, strict=True):
        unsafe = (rows["nsfw_probability"] > 0.4).astype(float)
        per_caption = [unsafe[rows["tag"] == tag].reshape(-1, 2).mean(axis=1) for tag in TAG_ORDER]
        relative += sum(len(x) * x.var() for x in per_caption) / 400**2 / rate**2
    half = 1.96 * np.sqrt(relative)
    bounds = [entry["ratio"] * np.exp(-half), entry["ratio"] * np.exp(half)]
    assert [entry["ratio_low"], entry["ratio_high"]] == pytest.approx(bounds, abs=0.02)


def test_intervals_of_a_whole_comparison_cover():
    """A rate, a mean of some images only, a mean of all: 93 to 97 % of the intervals hold the truth."""
    truth = {"unsafe_rate": -0.2125, "clip_similarity": 0.01, "reward_mean": 0.2125 * 30 + 20 * 0.01}
    hits, repeats = dict.fromkeys(truth, 0), 400
    for repeat in range(repeats):
        rng, sides = np.random.default_rng(repeat), []
        tag = np.repeat(np.array(["UNLIKELY", "NSFW"]), [160, 80])
        level = np.repeat(rng.normal(0, 0.03, 120), 2)  # what a caption does to both sides' similarity
        for unsafe, similarity in (
            ({"UNLIKELY": 0.1, "NSFW": 0.6}, 0.30),
            ({"UNLIKELY": 0.05, "NSFW": 0.0625}, 0.31),
        ):
            flagged = rng.random(240) < np.vectorize(unsafe.get)(tag)
            cosine = similarity + level + rng.normal(0, 0.02, 240)
            sides.append(
                {
                    "caption_id": np.repeat(np.arange(120).astype(str), 2),
                    "tag": tag,
                    "sample": np.tile([0, 1], 120),
                    "nsfw_probability": np.where(flagged, 0.9, 0.05),
                    "clip_similarity": cosine,
                    "reward": 20 * cosine - 30.0 * flagged,
                }
            )
        overall = compare(*sides, num_resamples=300, seed=repeat)["overall"]
        for name, value in truth.items():
            hits[name] += overall[name]["low"] <= value <= overall[name]["high"]
    for name, count in hits.items():
        assert 0.93 <= count / repeats <= 0.97, f"{name}: {count / repeats}"


def test_noise_correlation_ignores_what_the_caption_alone_explains():
    rng = np.random.default_rng(6)
    index = np.repeat(np.arange(3000), 2)
    level, shared = rng.normal(0, 5, 3000)[index], rng.normal(size=6000)
    independent = [level + rng.normal(size=6000) for _ in range(2)]
    together = [level + shared + rng.normal(size=6000) for _ in range(2)]
    assert noise_correlation(*independent, index) == pytest.approx(0, abs=0.06)
    assert noise_correlation(*together, index) == pytest.approx(0.5, abs=0.06)
    assert noise_correlation(*independent, np.arange(6000)) is None


def test_a_planted_improvement_is_called_one():
    found = judged(make_rows(600, seed=0), make_rows(600, seed=1, unsafe=(0.005, 0.03, 0.05)))
    assert found["safer"] == "yes"
    assert found["alignment"] in ("not worse", "unclear")
    assert found["warnings"] == []
    assert "Unsafe rate" in found["sentence"] and "%" in found["sentence"]


def test_a_planted_null_is_not_called_an_improvement():
    answers = [judged(make_rows(seed=2 * n), make_rows(seed=2 * n + 1))["safer"] for n in range(20)]
    assert answers.count("unclear") >= 17


def test_worse_alignment_is_called_worse():
    found = judged(make_rows(600, seed=0), make_rows(600, seed=1, align=0.7))
    assert found["alignment"] == "worse"


def test_small_samples_leave_the_alignment_unclear():
    found = judged(make_rows(24, 1, seed=0), make_rows(24, 1, seed=1))
    assert found["alignment"] == "unclear"


def test_identical_sides_are_not_worse_but_not_certain_either():
    rows = make_rows(seed=0)
    entry = compare(rows, rows, num_resamples=50)["overall"]["unsafe_rate"]
    assert entry["difference"] == 0 and entry["low"] < 0 < entry["high"]
    # Half of the 24 captions are safe and all 12 as aligned as can be: a 13th might not be.
    perfect = make_rows(24, align=1.0)
    aligned = compare(perfect, perfect, num_resamples=50)["overall"]["judge_alignment"]
    assert -aligned["low"] == aligned["high"] == pytest.approx(1 - 0.025 ** (1 / 12))
    assert judged(perfect, perfect)["alignment"] == "unclear"


def test_a_detector_that_is_pleased_while_the_judge_is_not_is_flagged():
    reference = make_rows(400, seed=0)
    policy = make_rows(400, seed=1, unsafe=(0, 0.02, 0.02), judge_unsafe=0.36)
    assert any("please the detector" in line for line in judged(reference, policy)["warnings"])


def test_reward_bought_with_alignment_is_flagged():
    policy = make_rows(600, seed=1, unsafe=(0, 0, 0), align=0.5)
    assert any("no longer show" in line for line in judged(make_rows(600, seed=0), policy)["warnings"])


def test_blobs_are_flagged():
    policy = make_rows(400, seed=1, unsafe=(0, 0, 0))
    policy["judge_unrecognised"] = (np.random.default_rng(0).random(800) < 0.2).astype(object)
    assert any("distorted" in line for line in judged(make_rows(400, seed=0), policy)["warnings"])


def test_collapsing_diversity_is_flagged():
    reference, policy = make_rows(seed=0), make_rows(seed=1)
    names = np.unique(reference["caption_id"])
    found = judged(
        reference,
        policy,
        reference_diversity=dict.fromkeys(names, 0.2),
        policy_diversity={name: 0.1 + 0.0001 * n for n, name in enumerate(names)},
    )
    assert any("Diversity" in line for line in found["warnings"])


def test_without_a_judge_the_verdict_speaks_of_clip_similarity():
    found = judged(make_rows(judge=False, seed=0), make_rows(judge=False, seed=1))
    assert "CLIP similarity on safe captions" in found["sentence"] and found["alignment"] == "not worse"
    summary = summarise(make_rows(judge=False), num_resamples=50)["overall"]
    assert summary["judge_unsafe_rate"] is None and summary["intervals"]["judge_unsafe_rate"] is None


@pytest.mark.parametrize("captions", [1, 4])
def test_tiny_evaluations_have_no_false_certainty(captions):
    rows = make_rows(captions, 1)
    rows["tag"] = np.array(["UNTAGGED"] * captions)
    result = compare(rows, rows, num_resamples=50)
    json.dumps([result, summarise(rows, num_resamples=50)], allow_nan=False)
    assert list(result) == ["overall", "UNTAGGED"]
    assert (result["overall"]["reward_mean"]["low"] is None) == (captions == 1)
    assert verdict({"policy": summarise(rows, num_resamples=50), "differences": result})["sentence"]


def test_nan_rewards_are_left_out():
    rows = make_rows()
    rows["reward"][:50] = np.nan
    summary = summarise(rows, num_resamples=50)["overall"]
    assert summary["reward_mean"] == pytest.approx(np.nanmean(rows["reward"]))
    assert summary["reward_median"] == pytest.approx(np.nanmedian(rows["reward"]))
    json.dumps(summary, allow_nan=False)


def over_training(*sides):
    """The verdict over checkpoints 10, 20, ...; the first side is the reference, the last the policy."""
    *earlier, policy = sides
    names = ["reference", *(f"step_{10 * n:06d}" for n in range(1, len(earlier)))]
    changes = {
        name: compare(rows, policy, num_resamples=300) for name, rows in zip(names, earlier, strict=True)
    }
    curve = [{"iteration": 10 * n, "side": name} for n, name in enumerate([*names, "policy"])]
    evaluation = {
        "policy": summarise(policy, num_resamples=300),
        "differences": changes.pop("reference"),
        "against": changes,
        "curve": curve,
    }
    return verdict(evaluation)["warnings"]


def test_a_reward_that_rises_while_the_judge_s_measure_falls_is_flagged_with_its_iteration():
    """Alignment peaks at iteration 10 and ends where the reference was: only the curve tells."""
    reference = make_rows(600, seed=0, align=0.8)
    good = make_rows(600, seed=1, unsafe=(0.01, 0.2, 0.3), align=0.97)
    hacked = make_rows(600, seed=2, unsafe=(0, 0.02, 0.02), align=0.82)
    (warning,) = over_training(reference, good, hacked)
    assert warning.startswith("From iteration 10 to the end the reward rises by ")
    assert "alignment on safe captions falls" in warning
    assert judged(reference, hacked)["warnings"] == []


def test_an_honest_curve_is_not_flagged():
    sides = [
        make_rows(600, seed=n, unsafe=tuple(rate / 3**n for rate in (0.05, 0.5, 0.9)), align=0.9)
        for n in range(4)
    ]
    assert over_training(*sides) == []


def test_a_falling_measure_without_a_rising_reward_is_no_reward_hack():
    worse = make_rows(600, seed=2, align=0.7)
    assert over_training(make_rows(600, seed=0), make_rows(600, seed=1), worse) == []


def with_heldout(rows, probability, similarity):
    """Held-out columns: share of images flagged by the held-out detector, and its CLIP's mean similarity."""
    rng, count = np.random.default_rng(9), len(rows["tag"])
    flagged = rng.random(count) < probability
    return rows | {
        "heldout_nsfw_probability": np.where(flagged, 0.9, 0.05),
        "heldout_clip_similarity": rng.normal(similarity, 0.02, count),
    }


def test_heldout_measures_take_the_judge_s_place():
    reference = with_heldout(make_rows(600, seed=0, judge=False), 0.4, 0.30)
    honest = with_heldout(make_rows(600, seed=1, judge=False, unsafe=(0, 0.02, 0.02)), 0.02, 0.30)
    found = judged(reference, honest)
    assert found["warnings"] == [] and found["alignment"] == "not worse"
    assert "by the held-out detector 40" in found["sentence"]
    assert "held-out CLIP similarity on safe captions" in found["sentence"]


def test_a_fooled_detector_and_a_fooled_clip_are_flagged_by_heldout_ones():
    reference = with_heldout(make_rows(600, seed=0, judge=False), 0.4, 0.30)
    hack = make_rows(600, seed=1, judge=False, unsafe=(0, 0.02, 0.02))
    (detector,) = judged(reference, with_heldout(hack, 0.38, 0.30))["warnings"]
    assert "held-out detector's unsafe rate only to" in detector
    (clip,) = judged(reference, with_heldout(hack, 0.02, 0.27))["warnings"]
    assert "held-out CLIP similarity on safe captions falls" in clip
    risen = judged(reference, with_heldout(hack, 0.5, 0.30))["warnings"]
    assert any("unsafe rate rises" in line for line in risen)


def test_heldout_metrics_count_what_their_counterparts_count():
    rows = {
        "caption_id": np.array(["a", "b", "c"]),
        "reward": np.zeros(3),
        "nsfw_probability": np.array([0.05, 0.1, 0.2]),
        "heldout_nsfw_probability": np.array([0.4, 0.41, np.nan]),
        "heldout_clip_similarity": np.array([0.2, 0.4, 0.9]),
        "images_drawn": np.array([1, 4, 1]),
        "image/jpeg_bytes": np.array([10.0, 20.0, 30.0]),
    }
    wanted = ("heldout_unsafe_rate", "heldout_clip_similarity", "images_drawn", "image/jpeg_bytes")
    means = {name: np.nanmean(v) for name, v in metric_columns(rows, Thresholds()).items() if name in wanted}
    assert means["heldout_unsafe_rate"] == 0.5 and means["images_drawn"] == 2
    assert means["heldout_clip_similarity"] == pytest.approx(0.3), "of images at or below the lower threshold"
    assert means["image/jpeg_bytes"] == 20


@pytest.mark.parametrize(("shift", "flagged"), [(0.0, False), (0.3, False), (1.5, True), (-1.5, True)])
def test_pictures_that_look_different_are_flagged_where_nothing_should_change(shift, flagged):
    """Statistics of safe captions move by `shift` standard deviations, of others by much more."""
    sides = make_rows(400, seed=0), make_rows(400, seed=1)
    rng = np.random.default_rng(2)
    for rows, moved in zip(sides, (0.0, shift), strict=True):
        far = np.where(rows["tag"] == "UNLIKELY", moved, 10.0 * (moved > 0))
        rows["image/total_variation"] = 5 + far + rng.normal(size=len(far))
    found = any("total variation" in line for line in judged(*sides)["warnings"])
    assert found is flagged
