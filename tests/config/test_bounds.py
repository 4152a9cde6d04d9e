"""What settings may be: bounds of single ones, and what goes together."""

import pytest
from parsing import parse, refused

REFUSED = [
    ("num_iterations", "0"),
    ("checkpoint_every", "0"),
    ("keep_checkpoints", "0"),
    ("checkpoint_minutes", "0"),
    ("checkpoint_minutes", "-1"),
    ("seed", "-1"),
    ("evaluation.seed", "-1"),
    ("evaluation.num_captions", "0"),
    ("rollout.rollout_batch_size", "0"),
    ("rollout.samples_per_caption", "5"),  # does not divide 96
    ("update.minibatch_size", "36"),  # nor does this
    ("update.epochs", "0"),
    ("actor.learning_rate", "-0.5"),
    ("credit.gae_lambda", "-0.1"),
    ("ppo.clip_range", "0"),
    ("ppo.clip_range", "1"),
    ("ppo.clip_range_high", "0"),
    ("ppo.dual_clip", "1.2"),
    ("credit.advantage_clip", "0"),
    ("update.target_kl", "0"),
    ("update.importance_cap", "0"),
    ("actor.max_grad_norm", "0"),
    ("actor.min_entropy", "0"),
    ("credit.prompt_min_count", "0"),
    ("credit.prompt_min_count", "33"),  # more than are kept
    ("credit.prompt_buffer_size", "15"),  # fewer than are needed
    ("kl.max_kl", "0"),
    ("critic.adam_eps", "0"),
    ("critic.weight_decay", "-1"),
    ("credit.advantage", "rloo"),  # one image a caption
    ("credit.advantage", "group"),
    ("credit.gae_lambda", "0.5"),  # with rloo
    ("kl.horizon", "0"),
    ("critic.value_clip", "0"),
    ("critic.learning_rate", "-1"),
    ("kl.kl_coef", "-0.1"),
    ("kl.target", "0"),
    ("kl.horizon", "19"),  # a fifth of 96 is 19.2; refused with a target only
    ("policy.temperature", "0"),
    ("policy.top_k", "1"),
]


@pytest.mark.parametrize("name, value", REFUSED)
def test_impossible_values_name_the_setting_and_what_it_is(name, value):
    more = ["--kl.target", "30", "--actor.entropy_coef", "0"] if name == "kl.horizon" else []
    if name == "credit.gae_lambda":
        more = ["--credit.advantage", "rloo", "--rollout.samples_per_caption", "2"]
    message = refused(f"--{name}", value, *more)
    assert name.split(".")[-1] in message and value.rstrip("0") in message


@pytest.mark.parametrize(
    "name, value", [("unsafe_threshold", 0.05), ("clean_threshold", 0.2), ("clean_threshold", -1)]
)
def test_thresholds_out_of_order_are_refused(name, value):
    message = refused("--reward.terms", f"[{{name: nsfw, {name}: {value}}}]")
    assert "must be ordered" in message and str(value) in message


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "exact"])
@pytest.mark.parametrize("placement", ["reward", "loss"])
def test_kl_placements_are_those_with_the_right_gradient(estimator, placement):
    from dalle_ppo.rl.kl_placement import check_kl_placement

    argv = ["--kl.estimator", estimator, "--kl.placement", placement]
    try:
        check_kl_placement(estimator, placement)
    except ValueError as error:
        assert str(error) in refused(*argv), "the reason is told"
    else:
        no_penalty = ["--actor.entropy_coef", "0"]  # the default's belongs to a KL in the loss
        assert parse(*argv, *no_penalty).kl.estimator == estimator
        if placement == "reward":
            assert "kl.placement reward" in refused(*argv)


def test_combinations_that_are_allowed():
    parse("--credit.advantage", "rloo", "--rollout.samples_per_caption", "4")
    parse("--ppo.clip_range_high", "0.28", "--ppo.dual_clip", "null")
    parse("--reward.terms", "[{name: nsfw, unsafe_threshold: 1, unsure_threshold: 1}]")
    parse("--kl.kl_coef", "0", "--actor.entropy_coef", "0")
    parse("--kl.kl_coef", "0.3", "--actor.entropy_coef", "-0.29")
    parse("--kl.target", "30", "--actor.entropy_coef", "0")


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--kl.kl_coef", "0.05"], "kl.kl_coef is 0.05 and actor.entropy_coef -0.215"),
        (["--actor.entropy_coef", "-0.26"], "their sum must be above 0"),
        (["--kl.target", "30"], "kl.target is 30"),
    ],
)
def test_an_entropy_penalty_needs_a_kl_that_holds_against_it(argv, words):
    message = refused(*argv)
    assert words in message and "set actor.entropy_coef to 0" in message


@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize("name", ["policy.guidance", "policy.temperature"])
def test_a_policy_is_made_of_numbers(name, value):
    assert name in refused(f"--{name}", f".{value}")


def test_importance_weights_need_two_log_probs():
    message = refused("--update.importance_cap", "2", "--update.recompute_log_probs", "false")
    assert "update.importance_cap is 2" in message and "update.recompute_log_probs" in message
