"""What each objective needs: its name alone gives it, and settings against it are refused in one line."""

import pytest
from parsing import parse, refused

NAMES = ("ddpo", "grpo", "rloo", "dpok")


@pytest.mark.parametrize(
    "name, advantage, images, steps",
    [("ddpo", "per_prompt", 8, 4), ("grpo", "group", 8, 4), ("rloo", "rloo", 4, 1), ("dpok", "gae", 1, 4)],
)
def test_the_name_alone_is_enough(name, advantage, images, steps):
    config = parse("--objective", name)
    assert config.credit.advantage == advantage and config.rollout.samples_per_caption == images
    assert config.minibatches == steps


@pytest.mark.parametrize("name", NAMES)
def test_another_advantage_is_refused(name):
    other = "rloo" if name != "rloo" else "group"
    message = refused("--objective", name, "--credit.advantage", other, "--rollout.samples_per_caption", "4")
    assert f"credit.advantage is {other}" in message and f"objective {name} needs" in message
    assert "choose objective ppo" in message


@pytest.mark.parametrize("name", ["grpo", "rloo"])
def test_one_image_per_caption_is_refused(name):
    message = refused("--objective", name, "--rollout.samples_per_caption", "1")
    assert "set rollout.samples_per_caption to at least 2" in message


@pytest.mark.parametrize(
    "argv, words",
    [
        (("rloo", "--update.epochs", "2"), "objective rloo needs 1"),
        (("rloo", "--update.minibatch_size", "24"), "objective rloo needs null"),
        (("dpok", "--kl.estimator", "k2"), "kl.estimator is k2 and kl.placement loss"),
        (("dpok", "--update.target_kl", "0.02"), "update.target_kl is 0.02; it must be null"),
        (("dpok", "--dpok.replay_images", "400"), "at most dpok.buffer_images = 384"),
        (("dpok", "--dpok.buffer_images", "-1"), "dpok.buffer_images is -1"),
        (("dpok", "--dpok.max_ratio", "0"), "dpok.max_ratio is 0"),
        (("ddpo", "--ddpo.clip_range", "1"), "ddpo.clip_range is 1"),
        (("grpo", "--grpo.clip_range", "1"), "grpo.clip_range is 1"),
        (("grpo", "--grpo.clip_range_high", "0"), "grpo.clip_range_high is 0"),
        (("grpo", "--ddpo.clip_range", "0.1"), "there are settings for ddpo"),
    ],
)
def test_what_does_not_suit_is_refused(argv, words):
    assert words in refused("--objective", *argv)


def test_combinations_that_are_allowed():
    parse("--objective", "dpok", "--dpok.replay_images", "0", "--update.target_kl", "0.02")
    parse("--objective", "ddpo", "--rollout.samples_per_caption", "1")
    parse("--objective", "rloo", "--update.minibatch_size", "96")


def test_clip_ranges_are_those_of_the_ratio():
    assert parse("--objective", "grpo").objective_settings.clip_ranges == (0.2, 0.28)
    of_images = parse("--objective", "grpo", "--grpo.ratio", "image").objective_settings
    assert of_images.clip_ranges == (0.01, 0.014)
    mine = parse("--objective", "grpo", "--grpo.ratio", "image", "--grpo.clip_range", "3e-4")
    assert mine.objective_settings.clip_ranges == (3e-4, 0.014)
