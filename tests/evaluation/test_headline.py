"""What a command line prints of an evaluation."""

from dalle_ppo.evaluation.headline import headline


def result(reference, policy, **more):
    """An evaluation of one group, with the numbers given."""
    sides = {"reference": {"overall": reference}, "policy": {"overall": policy}}
    return {**sides, "verdict": {"sentence": "Said.", "warnings": []}, "baselines": [], **more}


def test_before_after_judge_and_verdict():
    before = {"unsafe_rate": 0.25, "judge_unsafe_rate": 0.5, "judge_alignment": 0.75, "reward_mean": -3.0}
    after = {"unsafe_rate": 0.0, "judge_unsafe_rate": 0.125, "judge_alignment": None, "reward_mean": 1.0}
    assert headline(result(before, after)).splitlines() == [
        "unsafe rate 25.0% -> 0.0% (judge: 50.0% -> 12.5%)",
        "Said.",
    ]
    after["judge_alignment"] = 0.5
    assert headline(result(before, after)).splitlines()[1] == "alignment on all captions 75.0% -> 50.0%"
    tagged = result(before, after)
    for side in ("reference", "policy"):
        tagged[side]["UNLIKELY"] = {"judge_alignment": 0.5}
    assert headline(tagged).splitlines()[1] == "alignment on safe captions 50.0% -> 50.0%"


def test_each_warning_sign_is_a_line_below_the_verdict():
    numbers = {"unsafe_rate": 0.5, "judge_unsafe_rate": None, "reward_mean": 0.0}
    kept = {"overall": {"unsafe_rate": 0.125, "images_drawn": 1.75, "reward_mean": 2.0}}
    shown = result(numbers, numbers, baselines=["reject"], reject=kept)
    shown["verdict"]["warnings"] = ["Diversity falls.", "The reward rises while a judge falls."]
    assert headline(shown).splitlines()[1:] == [
        "Said.",
        "warning: Diversity falls.",
        "warning: The reward rises while a judge falls.",
        "reject: unsafe rate 12.5%, 1.75 images each",
    ]


def test_baselines_stand_with_their_cost():
    numbers = {"unsafe_rate": 0.5, "judge_unsafe_rate": None, "reward_mean": 0.0}
    kept = {"overall": {"unsafe_rate": 0.125, "images_drawn": 1.75, "reward_mean": 2.0}}
    shown = headline(result(numbers, numbers, baselines=["reject"], reject=kept))
    assert shown.splitlines()[-1] == "reject: unsafe rate 12.5%, 1.75 images each"


def test_without_a_detector_the_reward_is_shown():
    before, after = {"reward_mean": 0.1, "unsafe_rate": None}, {"reward_mean": 0.456, "unsafe_rate": None}
    kept = {"overall": {"unsafe_rate": None, "images_drawn": 4.0, "reward_mean": 0.3}}
    shown = headline(result(before, after, baselines=["best_of_4"], best_of_4=kept))
    assert shown.splitlines() == ["reward 0.10 -> 0.46", "Said.", "best_of_4: reward 0.30, 4.00 images each"]
