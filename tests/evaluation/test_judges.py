"""Judges measure copies of the images, and the reward's rise is told from theirs."""

import numpy as np
import pytest
import torch

from dalle_ppo.evaluation.judges import fallen_judges, judge_columns, proxy_and_judges
from dalle_ppo.rewards.base import RewardResult, Term
from dalle_ppo.rewards.combine import CombinedReward

CAPTIONS = 200


def brightness(images, captions):
    value = images.mean(dim=(1, 2, 3))
    images.zero_()  # a judge may spoil its images
    return -value, {"size": [len(text) for text in captions]}


def test_values_and_parts_become_columns():
    pixels, judge = torch.rand(3, 3, 4, 4), CombinedReward([Term("my:dark", brightness)])
    kept = pixels.clone()
    columns = judge_columns({"my:dark#2": judge, "my:dark": judge}, pixels, ["a", "bb", "c"], [{}] * 3)
    assert list(columns)[:2] == ["judge/my:dark#2", "judge/my:dark#2/size"] and len(columns) == 4
    np.testing.assert_allclose(columns["judge/my:dark"], -kept.numpy().mean(axis=(1, 2, 3)), rtol=1e-5)
    assert columns["judge/my:dark/size"].tolist() == [1, 2, 1] and torch.equal(pixels, kept)


def test_a_judge_that_spoils_its_images_leaves_them_to_the_next():
    def spoils(images, captions, metadata):
        return RewardResult(images.zero_().sum(dim=(1, 2, 3)))

    def reads(images, captions, metadata):
        return RewardResult(images.sum(dim=(1, 2, 3)))

    columns = judge_columns({"spoils": spoils, "reads": reads}, torch.ones(2, 3, 4, 4), ["a", "b"], [{}] * 2)
    assert columns["judge/reads"].tolist() == [48, 48]


def test_a_judge_that_fails_is_named():
    judge = CombinedReward([Term("my:bad", lambda images, captions: [float("nan")] * len(captions))])
    with pytest.raises(ValueError, match=r"evaluation.judges: reward my:bad .* not finite"):
        judge_columns({"my:bad": judge}, torch.rand(2, 3, 4, 4), ["a", "b"], [{}] * 2)


def side(reward_shift, judge_shift, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "caption_id": np.array([f"{n:03d}" for n in range(CAPTIONS)]),
        "sample": np.zeros(CAPTIONS, int),
        "tag": np.array(["UNLIKELY", "NSFW"] * (CAPTIONS // 2)),
        "reward": rng.normal(size=CAPTIONS) * 5 + reward_shift,
        "judge/a": rng.normal(size=CAPTIONS) * 0.1 + judge_shift,
    }


CURVE = [
    {"iteration": 0, "side": "reference"},
    {"iteration": 3, "side": "step_000003"},
    {"iteration": 6, "side": "policy"},
]


def test_a_judge_that_says_the_same_of_all_images_has_no_shift():
    """In float32, the deviation of 200 times 0.1 is 1e-9 and not 0: the shift was 1e8."""
    flat = [
        side(shift, 0, seed) | {"judge/a": np.full(CAPTIONS, 0.1 + shift, "f4")}
        for seed, shift in ((0, 0), (1, 5))
    ]
    assert np.std(flat[0]["judge/a"]) > 0
    sides = dict(zip(("reference", "policy"), flat, strict=True))
    last = proxy_and_judges(sides, [CURVE[0], CURVE[2]], {"a": 1.0})["curve"][-1]
    assert (
        last["judge/a"] == {"shift": None, "low": None, "high": None} and last["reward_mean"]["shift"] > 0.5
    )


def judged(weight, *shifts):
    rows = [side(*shift, seed) for seed, shift in enumerate([(0, 0), *shifts])]
    sides = dict(zip(("reference", "step_000003", "policy"), rows, strict=True))
    return proxy_and_judges(sides, CURVE, {"a": weight}), rows


@pytest.mark.parametrize("weight", [1.0, -0.5])
def test_shifts_are_paired_differences_in_standard_deviations_of_the_reference(weight):
    result, rows = judged(weight, (5, -0.1), (10, -0.3))
    assert result["better"] == {"a": "up" if weight > 0 else "down"}
    assert [(p["iteration"], p["side"]) for p in result["curve"]] == [tuple(p.values()) for p in CURVE]
    for point, row in zip(result["curve"], rows, strict=True):
        for name, column, sign in (("reward_mean", "reward", 1), ("judge/a", "judge/a", np.sign(weight))):
            expected = sign * (row[column] - rows[0][column]) / np.std(rows[0][column])
            wide = 1.96 * expected.std() / np.sqrt(CAPTIONS)
            assert point[name]["shift"] == pytest.approx(expected.mean(), abs=1e-9)
            assert point[name]["low"] == pytest.approx(expected.mean() - wide, abs=0.2 * wide + 1e-9)
            assert point[name]["high"] == pytest.approx(expected.mean() + wide, abs=0.2 * wide + 1e-9)


@pytest.mark.parametrize(
    "weight, shift, fallen",
    [
        (1, (10, -0.3), True),
        (-1, (10, 0.3), True),
        (1, (10, 0.3), False),
        (-1, (10, -0.3), False),
        (1, (0, -0.3), False),  # the reward has not risen
        (1, (10, 0.0), False),
    ],
)
def test_a_judge_that_falls_while_the_reward_rises_is_a_warning(weight, shift, fallen):
    warnings = fallen_judges(judged(weight, (0, 0), shift)[0])
    assert len(warnings) == fallen and all("judge a gets worse by" in warning for warning in warnings)


def test_a_judge_without_spread_has_no_shift():
    rows = side(0, 0) | {"judge/a": np.ones(CAPTIONS)}
    sides = {"reference": rows, "policy": rows}
    last = proxy_and_judges(sides, [CURVE[0], CURVE[2]], {"a": 1.0})["curve"][-1]
    assert last["judge/a"] == {"shift": None, "low": None, "high": None}
