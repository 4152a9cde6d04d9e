"""What objectives that weigh whole images need of other settings."""

import pytest
from parsing import parse, refused

NAMES = ["rwr", "best_of_n", "online_dpo", "dpok_sft"]
COMPARING = ["best_of_n", "online_dpo"]


@pytest.mark.parametrize("name", NAMES)
def test_the_name_alone_is_enough(name):
    config = parse("--objective", name)
    assert config.credit.advantage == "none" and not config.credit.whiten_advantages
    assert (config.rollout.samples_per_caption > 1) == (name in COMPARING)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "setting, value",
    [
        ("credit.advantage", "gae"),
        ("credit.whiten_advantages", "true"),
        ("credit.advantage_clip", "5"),
        ("update.importance_cap", "2"),
    ],
)
def test_what_it_would_not_read_is_refused(name, setting, value):
    message = refused("--objective", name, f"--{setting}", value)
    assert message.startswith(f"{setting} is ") and name in message and "leave it out" in message


@pytest.mark.parametrize("name", NAMES)
def test_a_kl_in_the_reward_is_refused(name):
    message = refused("--objective", name, "--kl.placement", "reward", "--kl.estimator", "k1")
    assert message.startswith("kl.placement is reward") and "set it to loss" in message


@pytest.mark.parametrize("name", COMPARING)
def test_one_image_per_caption_is_refused(name):
    message = refused("--objective", name, "--rollout.samples_per_caption", "1")
    assert name in message and "rollout.samples_per_caption is 1" in message


def test_a_softmax_over_one_image_is_refused():
    assert "rwr.per_prompt" in refused("--objective", "rwr", "--rwr.per_prompt", "true")
    parse("--objective", "rwr", "--rwr.per_prompt", "true", "--rollout.samples_per_caption", "4")


@pytest.mark.parametrize("value", ["100", "-1"])
def test_impossible_percentiles_are_refused(value):
    assert "rwr.sparse_percentile is" in refused("--objective", "rwr", "--rwr.sparse_percentile", value)


@pytest.mark.parametrize("setting", ["minibatch_size", "microbatch_size"])
def test_sizes_that_split_a_pair_are_refused(setting):
    message = refused("--objective", "online_dpo", f"--update.{setting}", "3")
    assert message.startswith(f"update.{setting} is 3; objective online_dpo needs an even number")


@pytest.mark.parametrize(
    "settings, named",
    [
        (("--kl.kl_coef", "0.1"), "dpok_sft.gamma"),
        (("--kl.estimator", "k2"), "dpok_sft.form output needs exact"),
        (("--update.recompute_log_probs", "false"), "dpok_sft.images_from reference"),
        (("--dpok_sft.gamma", "-1"), "dpok_sft.gamma is -1.0"),
    ],
)
def test_conflicts_of_dpok_sft_are_refused(settings, named):
    assert named in refused("--objective", "dpok_sft", *settings)


@pytest.mark.parametrize("name", ["ppo", "reinforce"])
def test_no_advantage_is_refused_where_one_is_needed(name):
    message = refused("--objective", name, "--credit.advantage", "none")
    assert message.startswith(f"credit.advantage is none; objective {name} learns from advantages")
