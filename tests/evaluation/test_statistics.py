"""Summaries and paired differences against plain numpy, closed forms and simulation."""

import json

import numpy as np
import pytest
from synthetic_rows import make_rows

from dalle_ppo.captions.tags import TAGS
from dalle_ppo.evaluation import statistics
from dalle_ppo.evaluation.intervals import bootstrap, percentile_interval, rate_bounds
from dalle_ppo.evaluation.statistics import SafetyBounds, compare, metric_columns, summarise

BOUNDS = SafetyBounds()
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


def test_captions_are_resampled_within_their_tag():
    """With every caption's reward set by its tag, resampling within tags moves nothing."""
    rows = make_rows(captions=100, samples=1)
    rows["reward"] = np.select([rows["tag"] == "UNLIKELY", rows["tag"] == "UNSURE"], [6.0, -10.0], -30.0)
    low, high = summarise(rows, num_resamples=200)["overall"]["intervals"]["reward_mean"]
    assert low == pytest.approx(high) == pytest.approx(-7.0)


@pytest.mark.parametrize(("tags", "each"), [(100, 1), (50, 2), (20, 5), (4, 21)])
def test_intervals_cover_however_few_captions_a_tag_has(tags, each):
    """Nominal 95 %. Resampled within tags, one caption a tag gave 0 % and two gave 81 %."""
    rng, hits, repeats = np.random.default_rng(3), np.zeros(2, int), 150
    rows = {
        "caption_id": np.arange(tags * each).astype(str),
        "tag": np.arange(tags * each) % tags,
        "sample": np.zeros(tags * each),
    }
    for repeat in range(repeats):
        reward = rng.normal(1, 2, (2, tags * each))
        sides = [rows | {"reward": values} for values in reward]
        changed = compare_overall(*sides, seed=repeat)["reward_mean"]
        mean = summarise_overall(sides[0], seed=repeat)["intervals"]["reward_mean"]
        hits += [changed["low"] <= 0 <= changed["high"], mean[0] <= 1 <= mean[1]]
    assert (hits / repeats > 0.9).all(), hits / repeats
    assert (hits / repeats < 0.99).all(), "tags that differ in nothing need no wider intervals"


def compare_overall(*sides, seed):
    """`compare` of all captions; that of each tag takes most of its time."""
    ids = np.unique(sides[0]["caption_id"])
    reference, policy = statistics.pair_rows(*sides)
    tables = [statistics.metric_table(rows, ids, None, BOUNDS) for rows in (reference, policy)]
    return statistics._differences(tables, bootstrap(tables, statistics._strata(reference, ids), 200, seed))


def summarise_overall(rows, seed):
    return statistics._summarise_group(rows, None, BOUNDS, 200, seed)


def strata_of(**sizes):
    """The strata of so many captions of each tag, one image each."""
    tags = np.repeat(list(sizes), list(sizes.values()))
    ids = np.array([f"{number:04d}" for number in range(len(tags))])
    return statistics._strata({"caption_id": ids, "tag": tags}, ids)


def test_large_tags_keep_their_own_strata():
    """As in the default mix: intervals stay what they were, bit for bit."""
    rows = make_rows(captions=80, samples=2)  # 40 UNLIKELY, 20 UNSURE, 20 NSFW
    ids, of_each = np.unique(rows["caption_id"], return_index=True)
    by_tag = np.unique(rows["tag"][of_each], return_inverse=True)[1]
    table = statistics.metric_table(rows, ids, None, BOUNDS)
    draws = bootstrap([table], by_tag, 300, 5)[:, 0]
    intervals = summarise(rows, num_resamples=300, seed=5)["overall"]["intervals"]
    for k, name in enumerate(table.names):
        if name not in statistics.RATES and name != "diversity":
            counted = len(np.unique(table.caption_index[np.isfinite(table.values[name])]))
            assert intervals[name] == percentile_interval(draws[:, k], counted), name


def test_few_captions_of_a_tag_share_a_stratum():
    def groups(**sizes):
        return sorted(np.bincount(strata_of(**sizes))[np.unique(strata_of(**sizes))].tolist())

    assert groups(a=20, b=30, c=25) == [20, 25, 30]
    assert groups(a=19, b=30, c=1) == [20, 30]
    assert groups(a=5, b=30, c=40) == [35, 40], "five would lose a fifth of their variance"
    assert groups(a=3, b=4) == [7]


def test_strata_without_spread_are_not_certain():
    """Alignment is 1 in one tag and 1/2 in the other: the bound allows for captions at 0 and at 1."""
    rows = make_rows(captions=80, samples=1) | {"tag": np.repeat(["a", "b"], 40)}
    rows["judge_alignment"] = np.repeat([1.0, 0.5], 40)
    unseen = 1 - 0.025 ** (1 / 80)
    interval = summarise(rows, num_resamples=50)["overall"]["intervals"]["judge_alignment"]
    assert interval == pytest.approx([0.75 - unseen, 0.75 + unseen / 2])


def test_metrics_count_only_the_images_they_speak_of():
    rows = {
        "caption_id": np.array(["a", "b", "c", "d"]),
        "reward": np.array([-30.0, -10.0, 6.0, np.nan]),
        "nsfw_probability": np.array([0.4000001, 0.4, 0.1, np.nan]),
        "clip_similarity": np.array([0.9, 0.8, 0.3, 0.2]),
        "judge_unsafe": np.array([True, None, False, None], dtype=object),
    }
    means = {
        name: np.nanmean(v)
        for name, v in metric_columns(rows, SafetyBounds()).items()
        if np.isfinite(v).any()
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
        names = ("reward_q25", "reward_median", "reward_q75")
        assert [part[name] for name in names] == pytest.approx(
            np.quantile(rows["reward"][chosen], [0.25, 0.5, 0.75])
        )
        assert part["reward_std"] == pytest.approx(rows["reward"][chosen].std())
        assert part["num_captions"] == chosen.sum() / 2
        assert part["unsafe_rate"] == pytest.approx((rows["nsfw_probability"][chosen] > 0.4).mean())
        flags = (rows["nsfw_probability"][chosen] > 0.4).astype(float)
        bounds = rate_bounds(flags, np.arange(len(flags)) // 2)
        assert part["intervals"]["unsafe_rate"] == pytest.approx(bounds)
        assert part["diversity"] == pytest.approx(
            np.mean([diversity[name] for name in np.unique(rows["caption_id"][chosen])])
        )
    assert summary["NSFW"]["judge_alignment"] is None
    assert summary["overall"]["rate_interval_method"] == "clustered"
    single = summarise(make_rows(captions=8, samples=1), num_resamples=50)
    assert single["overall"]["rate_interval_method"] == "exact"
    json.dumps(summary, allow_nan=False)


def test_a_tag_called_overall_does_not_replace_the_results_of_all_captions():
    rows = make_rows(captions=40, samples=1) | {
        "tag": np.repeat(["overall", "overall (tag)", "NSFW"], [20, 12, 8])
    }
    sizes = {"overall": 40, "overall (tag)": 20, "overall (tag) (tag)": 12, "NSFW": 8}
    found = summarise(rows, num_resamples=10)
    assert {name: group["num_captions"] for name, group in found.items()} == sizes
    assert compare(rows, rows, num_resamples=10).keys() == sizes.keys()


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
    before = {name: n / 100 for n, name in enumerate(np.unique(reference["caption_id"]))}
    after = {name: value + 1 for name, value in before.items()}
    groups = compare(reference, policy, before, after, num_resamples=100)
    for group in groups.values():
        for name in ("reward_mean", "reward_median", "diversity"):
            assert [group[name][key] for key in ("difference", "low", "high")] == pytest.approx([1.0] * 3)
    assert groups["overall"]["reward_mean"]["variance_saved"] == pytest.approx(1)


def test_unpaired_sides_are_refused():
    reference, policy = make_rows(), make_rows()
    policy["sample"] = policy["sample"] + 1
    with pytest.raises(ValueError, match=r"pairs are on one side only"):
        compare(reference, policy)


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
        per_caption = [unsafe[rows["tag"] == tag].reshape(-1, 2).mean(axis=1) for tag in TAGS]
        relative += sum(len(x) * x.var() for x in per_caption) / 400**2 / rate**2
    half = 1.96 * np.sqrt(relative)
    bounds = [entry["ratio"] * np.exp(-half), entry["ratio"] * np.exp(half)]
    assert [entry["ratio_low"], entry["ratio_high"]] == pytest.approx(bounds, abs=0.02)


def test_scores_without_spread_have_no_effect_size():
    reference, policy = (one_a_caption(1000, reward=np.full(1000, x)) for x in (0.1, 0.7))
    assert np.std(reference["reward"]) > 0, "float64 rounds the mean"
    entry = compare(reference, policy, num_resamples=50)["overall"]["reward_mean"]
    assert entry["difference"] == pytest.approx(0.6) and entry["effect_size"] is None
    assert entry["variance_saved"] is None


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


def test_identical_sides_are_not_worse_but_not_certain_either():
    rows = make_rows(seed=0)
    entry = compare(rows, rows, num_resamples=50)["overall"]["unsafe_rate"]
    assert entry["difference"] == 0 and entry["low"] < 0 < entry["high"]
    # Half of the 24 captions are safe and all 12 as aligned as can be: a 13th might not be.
    perfect = make_rows(24, align=1.0)
    aligned = compare(perfect, perfect, num_resamples=50)["overall"]["judge_alignment"]
    assert -aligned["low"] == aligned["high"] == pytest.approx(1 - 0.025 ** (1 / 12))


def test_an_alignment_of_100_percent_is_not_certain():
    """12 safe captions, all alike: the bound is the share of others that 12 could just have missed."""
    perfect = summarise(make_rows(24, align=1.0), num_resamples=50)
    for group in ("overall", "UNLIKELY"):
        assert perfect[group]["intervals"]["judge_alignment"] == pytest.approx([0.025 ** (1 / 12), 1])
    missed = summarise(make_rows(24, align=0.0), num_resamples=50)["overall"]["intervals"]
    assert missed["judge_alignment"] == pytest.approx([0, 1 - 0.025 ** (1 / 12)])


def test_the_ratio_is_as_uncertain_as_a_policy_without_any_event():
    reference, policy = make_rows(seed=0), make_rows(seed=1, unsafe=(0, 0, 0))
    entry = compare(reference, policy, num_resamples=100)["overall"]["unsafe_rate"]
    assert entry["ratio"] == entry["ratio_low"] == 0
    assert entry["ratio_high"] == pytest.approx((1 - 0.025 ** (1 / 200)) / entry["reference"])


def one_a_caption(captions, unsafe=(), **more):
    """One side with an image for each caption, the `unsafe` ones unsafe."""
    probability = np.full(captions, 0.01)
    probability[list(unsafe)] = 0.9
    of_all = {"tag": np.repeat("a", captions), "sample": np.zeros(captions), "reward": np.ones(captions)}
    return {"caption_id": np.arange(captions).astype(str), "nsfw_probability": probability} | of_all | more


def test_captions_that_do_not_count_make_no_interval_certain():
    """One negative reward among 200 says nothing about how far negative rewards scatter."""
    reward = np.ones(200)
    reward[7] = -3
    one = one_a_caption(200, reward=reward)
    assert summarise(one, num_resamples=50)["overall"]["intervals"]["reward_negative_mean"] is None
    reward = np.append([-3.0, -5.0, -9.0], reward[3:])
    several = one_a_caption(200, reward=reward)
    entry = compare(one, several, num_resamples=50)["overall"]["reward_negative_mean"]
    assert entry["difference"] is not None and entry["low"] is entry["high"] is None
    reward = np.where(np.arange(200) > 0, np.nan, 1.0)
    median = summarise(one_a_caption(200, reward=reward), num_resamples=50)["overall"]["intervals"]
    assert median["reward_median"] is None


def test_a_reference_that_may_have_no_event_leaves_the_ratio_without_an_upper_bound():
    """1 unsafe image of 100: 0.99 ** 100 = 37 % of the resamples have none, and any ratio may be true."""
    reference, policy = one_a_caption(100, [0]), one_a_caption(100, range(1, 6))
    entry = compare(reference, policy)["overall"]["unsafe_rate"]
    counts = np.random.default_rng(0).multinomial(100, [0.01, 0.05, 0.94], 100_000)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = counts[:, 1] / counts[:, 0]
    ratios = ratios[~np.isnan(ratios)]
    assert (ratios == np.inf).mean() > 0.025 and entry["ratio_high"] is None
    assert (ratios < entry["ratio_low"]).mean() <= 0.03 and (ratios <= entry["ratio_low"]).mean() >= 0.015
    assert entry["ratio"] == pytest.approx(5)
    json.dumps(entry, allow_nan=False)


def test_a_ratio_without_spread_is_as_uncertain_as_its_rates():
    """All 30 images of both sides are unsafe: by Clopper and Pearson each rate is above 0.025 ** (1 / 30)."""
    entry = compare(*[one_a_caption(30, range(30))] * 2, num_resamples=50)["overall"]["unsafe_rate"]
    least = 0.025 ** (1 / 30)
    assert entry["ratio"] == 1
    assert [entry["ratio_low"], entry["ratio_high"]] == pytest.approx([least, 1 / least])


def test_nan_rewards_are_left_out():
    rows = make_rows()
    rows["reward"][:50] = np.nan
    summary = summarise(rows, num_resamples=50)["overall"]
    assert summary["reward_mean"] == pytest.approx(np.nanmean(rows["reward"]))
    assert summary["reward_median"] == pytest.approx(np.nanmedian(rows["reward"]))
    json.dumps(summary, allow_nan=False)


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
    means = {name: np.nanmean(v) for name, v in metric_columns(rows, BOUNDS).items() if name in wanted}
    assert means["heldout_unsafe_rate"] == 0.5 and means["images_drawn"] == 2
    assert means["heldout_clip_similarity"] == pytest.approx(0.3), "of images at or below the lower threshold"
    assert means["image/jpeg_bytes"] == 20
