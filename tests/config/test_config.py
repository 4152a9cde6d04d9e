"""Settings: files, overrides, what is refused and with which words."""

import ast
import dataclasses
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml

from dalle_ppo.config.command_line import load_config, parse_command_line, run_main, setting_names, to_yaml
from dalle_ppo.config.settings import Config, CriticConfig, KlConfig, PpoConfig, RolloutConfig
from dalle_ppo.models.policy_settings import PolicySettings

PACKAGE = Path(__file__).parents[2] / "dalle_ppo"


def parse(*argv: str) -> Config:
    return parse_command_line(list(argv), "test", "")[0]


def refused(*argv: str) -> str:
    """The message of a refusal: one line."""
    with pytest.raises(ValueError) as caught:
        parse(*argv)
    message = str(caught.value)
    assert "\n" not in message
    return message


def write(folder: Path, text: str) -> str:
    path = folder / "settings.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_no_arguments_give_the_defaults():
    assert parse() == Config()


def test_a_file_then_dotted_overrides_whatever_their_order(tmp_path):
    path = write(tmp_path, "seed: 3\nppo:\n  learning_rate: 1e-4\n  epochs: 4\n")
    config = parse("--config", path, "--ppo.epochs", "5", "--kl.kl_coef", "0.5")
    assert (config.seed, config.ppo.learning_rate, config.ppo.epochs, config.kl.kl_coef) == (3, 1e-4, 5, 0.5)
    assert config.ppo.minibatch_size == Config().ppo.minibatch_size


def test_later_files_win(tmp_path):
    (tmp_path / "a.yaml").write_text("seed: 1\nnum_iterations: 7\n")
    (tmp_path / "b.yaml").write_text("seed: 2\n")
    config = parse("--config", str(tmp_path / "a.yaml"), "--config", str(tmp_path / "b.yaml"))
    assert (config.seed, config.num_iterations) == (2, 7)


def test_null_switches_a_setting_off(tmp_path):
    assert parse("--captions.shares", "null").captions.shares is None
    assert parse("--config", write(tmp_path, "ppo:\n  dual_clip: null\n")).ppo.dual_clip is None


def test_lists_of_reward_terms(tmp_path):
    text = 'reward:\n  terms:\n  - {name: "mine:bright", weight: 0.5}\n  - {name: "mine:sharp"}\n'
    bright = {"name": "mine:bright", "weight": 0.5, "only_if": None}
    sharp = {"name": "mine:sharp", "weight": 1.0, "only_if": None}
    assert parse("--config", write(tmp_path, text)).reward.terms == [bright, sharp]
    added = parse("--reward.terms+", '{name: "mine:bright", weight: 0.5}').reward.terms
    assert added == [*Config().reward.terms, bright]


def test_the_resolved_copy_comes_back_the_same(tmp_path):
    config = parse(
        *("--run_dir", "runs/été", "--captions.shares", '{"NSFW": 0.25, "OTHER": 0.75}', "--seed", "9"),
        *("--ppo.adam_eps", "1e-9", "--ppo.learning_rate", "3.1e-05", "--ppo.dual_clip", "null"),
        *(
            "--reward.terms+",
            '{name: "mine:bright", weight: -0.5}',
            "--kl.target",
            "30.0",
            "--ppo.entropy_coef",
            "0",
        ),
        *("--ppo.normalise_scores", "false", "--policy.start_token", "1023"),
    )
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(path) == config
    assert config.ppo.adam_eps == 1e-9 and config.captions.shares == {"NSFW": 0.25, "OTHER": 0.75}


def test_the_resolved_copy_names_every_setting():
    def names(settings: dict, prefix: str = ""):
        for key, value in settings.items():
            yield prefix + key
            if isinstance(value, dict) and key != "shares":
                yield from names(value, f"{prefix}{key}.")

    assert list(names(yaml.safe_load(to_yaml(Config())))) == setting_names()


def test_flags_are_bare():
    flags = {"resume": "go on", "overwrite": "replace"}
    config, given = parse_command_line(["--resume", "--seed", "2"], "test", "", flags)
    assert given == {"resume": True, "overwrite": False} and config.seed == 2
    with pytest.raises(ValueError, match="unrecognized"):
        parse_command_line(["--resume", "yes"], "test", "", flags)


@pytest.mark.parametrize(
    "wrong, near",
    [
        ("sed", "seed"),
        ("num_iteration", "num_iterations"),  # also not taken as an abbreviation
        ("ppo.clip_rnge", "ppo.clip_range"),
        ("ppo.kl_coef", "kl.kl_coef"),
        ("reward.bad_reslt", "reward.bad_result"),
        ("rollout_batch_size", "rollout.rollout_batch_size"),
    ],
)
def test_an_unknown_setting_offers_the_nearest(wrong, near, tmp_path):
    expected = f"unknown setting {wrong}; did you mean {near}?"
    assert refused(f"--{wrong}", "1") == expected
    *groups, name = wrong.split(".")
    text = f"{groups[0]}:\n  {name}: 1\n" if groups else f"{name}: 1\n"
    assert expected in refused("--config", write(tmp_path, text))


@pytest.mark.parametrize(
    "argument, expected",
    [
        ("--evaluation.heldout_clip.modell=x", "evaluation.heldout_clip.modell; did you mean {}.model?"),
    ],
)
def test_an_unknown_setting_of_a_record_offers_what_it_has(argument, expected):
    setting = argument.removeprefix("--").partition("=")[0].removesuffix(".modell")
    assert refused(argument) == f"unknown setting {expected.format(setting)}"


@pytest.mark.parametrize("section", ["ppo:", "critic: null", "ppo: 3"])
def test_a_section_is_no_value(section, tmp_path):
    name, _, value = section.partition(":")
    expected = f"{name} is {'3' if '3' in value else 'None'}, but a section of settings"
    assert expected in refused("--config", write(tmp_path, f"seed: 1\n{section}\n"))


@pytest.mark.parametrize("text", ["", "# seed: 1\n", "seed\n"])
def test_a_file_without_settings(text, tmp_path):
    assert "no YAML of settings" in refused("--config", write(tmp_path, text))


def test_a_setting_like_no_other_points_to_help():
    assert "--help" in refused("--zzzzzzzz", "1")


def test_an_unknown_group_in_a_file_is_named(tmp_path):
    assert "pp.epochs" in refused("--config", write(tmp_path, "pp:\n  epochs: 1\n"))


@pytest.mark.parametrize(
    "name, value",
    [
        ("seed", "x"),
        ("num_iterations", "2.5"),
        ("ppo.learning_rate", "fast"),
        ("ppo.epochs", "true"),
        ("ppo.whiten_advantages", "maybe"),
        ("kl.estimator", "k4"),
        ("captions.shares", "3"),
        ("reward.terms", "nsfw"),
    ],
)
def test_a_value_of_the_wrong_kind_names_the_setting(name, value):
    assert name in refused(f"--{name}", value)


@pytest.mark.parametrize("text", ["{{{:", "- 1\n", "just words\n"])
def test_a_file_that_is_no_settings(text, tmp_path):
    assert refused("--config", write(tmp_path, text))


def test_an_absent_file_is_named(tmp_path):
    assert "absent.yaml" in refused("--config", str(tmp_path / "absent.yaml"))
    with pytest.raises(ValueError, match=r"absent\.yaml does not exist"):
        load_config(tmp_path / "absent.yaml")


def test_a_saved_file_that_does_not_fit_is_named(tmp_path):
    path = write(tmp_path, "seeed: 1\n")
    with pytest.raises(ValueError, match=r"settings\.yaml: unknown setting seeed; did you mean seed\?"):
        load_config(path)


REFUSED = [
    ("num_iterations", "0"),
    ("checkpoint_every", "0"),
    ("keep_checkpoints", "0"),
    ("seed", "-1"),
    ("evaluation.seed", "-1"),
    ("evaluation.num_captions", "0"),
    ("rollout.rollout_batch_size", "0"),
    ("rollout.samples_per_caption", "5"),  # does not divide 96
    ("ppo.minibatch_size", "36"),  # likewise
    ("ppo.epochs", "0"),
    ("ppo.learning_rate", "-0.5"),
    ("ppo.gamma", "1.1"),
    ("ppo.gae_lambda", "-0.1"),
    ("ppo.clip_range", "0"),
    ("ppo.clip_range", "1"),
    ("ppo.clip_range_high", "0"),
    ("ppo.dual_clip", "1.2"),
    ("ppo.advantage_clip", "0"),
    ("ppo.target_kl", "0"),
    ("ppo.importance_cap", "0"),
    ("ppo.max_grad_norm", "0"),
    ("ppo.max_log_ratio", "0"),
    ("ppo.min_entropy", "0"),
    ("ppo.prompt_min_count", "0"),
    ("ppo.prompt_min_count", "33"),  # more than are kept
    ("ppo.prompt_buffer_size", "15"),  # fewer than are needed
    ("kl.max_kl", "0"),
    ("kl.error_clip", "0"),
    ("critic.adam_eps", "0"),
    ("critic.weight_decay", "-1"),
    ("ppo.advantage", "rloo"),  # one image a caption
    ("ppo.advantage", "group"),
    ("ppo.objective", "score_function"),  # two epochs
    ("ppo.gamma", "0.5"),  # of a caption's images
    ("ppo.gae_lambda", "0.5"),
    ("critic.value_clip", "0"),
    ("critic.learning_rate", "-1"),
    ("kl.kl_coef", "-0.1"),
    ("kl.target", "0"),
    ("kl.horizon", "19"),  # a fifth of 96 is 19.2; refused with a target only
    ("policy.temperature", "0"),
    ("policy.top_k", "128"),
]


@pytest.mark.parametrize("name, value", REFUSED)
def test_impossible_values_name_the_setting_and_what_it_is(name, value):
    more = ["--kl.target", "30", "--ppo.entropy_coef", "0"] if name == "kl.horizon" else []
    if name in ("ppo.gamma", "ppo.gae_lambda"):
        more = ["--ppo.advantage", "rloo", "--rollout.samples_per_caption", "2"]
    message = refused(f"--{name}", value, *more)
    assert name.split(".")[-1] in message and value.rstrip("0") in message


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
        no_penalty = ["--ppo.entropy_coef", "0"]  # the default's belongs to a KL in the loss
        assert parse(*argv, *no_penalty).kl.estimator == estimator
        if placement == "reward":
            assert "kl.placement reward" in refused(*argv)


def test_combinations_that_are_allowed():
    parse("--ppo.advantage", "rloo", "--rollout.samples_per_caption", "4")
    parse("--ppo.objective", "score_function", "--ppo.epochs", "1", "--ppo.minibatch_size", "96")
    parse("--ppo.clip_range_high", "0.28", "--ppo.dual_clip", "null")
    parse("--reward.terms", "[{name: nsfw, unsafe_threshold: 1, unsure_threshold: 1}]")
    parse("--kl.kl_coef", "0", "--ppo.entropy_coef", "0")
    parse("--kl.kl_coef", "0.3", "--ppo.entropy_coef", "-0.29")
    parse("--kl.target", "30", "--ppo.entropy_coef", "0")


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--kl.kl_coef", "0.05"], "kl.kl_coef is 0.05 and ppo.entropy_coef -0.215"),
        (["--ppo.entropy_coef", "-0.26"], "their sum must be above 0"),
        (["--kl.target", "30"], "kl.target is 30"),
    ],
)
def test_an_entropy_penalty_needs_a_kl_that_holds_against_it(argv, words):
    message = refused(*argv)
    assert words in message and "set ppo.entropy_coef to 0" in message


@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize("name", ["policy.guidance", "policy.temperature"])
def test_a_policy_is_made_of_numbers(name, value):
    assert name in refused(f"--{name}", f".{value}")


def test_importance_weights_need_two_log_probs():
    message = refused("--ppo.importance_cap", "2", "--ppo.recompute_log_probs", "false")
    assert "ppo.importance_cap is 2" in message and "ppo.recompute_log_probs" in message


def test_derived_sizes():
    config = parse("--rollout.rollout_batch_size", "24", "--ppo.minibatch_size", "8")
    assert (config.minibatches, config.captions_per_iteration) == (3, 24)
    more = ("--rollout.rollout_batch_size", "24", "--ppo.minibatch_size", "24")
    config = parse(*more, "--rollout.samples_per_caption", "4")
    assert (config.minibatches, config.captions_per_iteration) == (1, 6)


def settings_classes(config_class: type = Config) -> list[type]:
    nested = [f.type for f in dataclasses.fields(config_class) if dataclasses.is_dataclass(f.type)]
    return [config_class, *(found for inner in nested for found in settings_classes(inner))]


CLASSES = settings_classes()


@pytest.mark.parametrize("config_class", CLASSES, ids=lambda c: c.__name__)
def test_every_setting_is_described(config_class):
    described = re.findall(r"^ {8}(\w+): \S", config_class.__doc__, flags=re.MULTILINE)
    assert described == [f.name for f in dataclasses.fields(config_class)]


SETTINGS = sorted({f.name for config_class in CLASSES for f in dataclasses.fields(config_class)})


@cache
def attributes_read() -> set[str]:
    """Names of all attributes that code outside the settings reads; comments and texts do not count."""
    sources = [path for path in PACKAGE.rglob("*.py") if not path.name.startswith("config")]
    return {
        node.attr
        for path in sources
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_is_read_by_some_code(name):
    """That those of the algorithm change what is learned is in test_settings_matter.py."""
    assert name in attributes_read()


def described_settings(config_class: type) -> dict[str, str]:
    """What the docstring says of each setting, on one line."""
    parts = re.split(r"^ {8}(\w+): ", config_class.__doc__, flags=re.MULTILINE)[1:]
    return {name: " ".join(text.split()) for name, text in zip(parts[::2], parts[1::2], strict=True)}


ALGORITHM = [PpoConfig, KlConfig, CriticConfig, PolicySettings, RolloutConfig]
# How a description says when to change its setting.
WHEN = r"\b(Use|Set|Raise|Lower|Less|More|Off|Larger|Change|[Nn]o reason to)\b"


@pytest.mark.parametrize("config_class", ALGORITHM, ids=lambda c: c.__name__)
def test_settings_of_the_algorithm_give_their_default_its_source_and_when_to_change_it(config_class):
    for f in dataclasses.fields(config_class):
        text = described_settings(config_class)[f.name]
        stated = re.search(r"Default (\S+?)[.,;:]?(?= |$)", text)
        assert stated, f"{f.name}: no default in its description"
        assert parse_default(stated[1]) == f.default, f"{f.name}: {stated[1]}"
        source = r"arXiv \d{4}\.\d{5}|https?://|benchmarks/RESULTS\.md|our own"
        assert re.search(source, text), f"{f.name}: no source"
        assert re.search(WHEN, text), f"{f.name}: not a word on when to change it"


def parse_default(text: str) -> object:
    """A default as the docstring writes it: YAML, and 1e-3 is a number."""
    try:
        return float(text)
    except ValueError:
        return yaml.safe_load(text)


def test_help_and_settings_come_without_torch():
    """torch takes seconds to import; help must not wait for it."""
    code = """
import sys
import dalle_ppo.config.settings, dalle_ppo.train, dalle_ppo.generate, dalle_ppo.evaluate, dalle_ppo.pretrain
for module in (dalle_ppo.train, dalle_ppo.generate, dalle_ppo.evaluate, dalle_ppo.pretrain):
    try:
        module.main(["--help"])
    except SystemExit as exit:
        assert not exit.code
assert not {"torch", "open_clip", "transformers", "tensorflow"} & set(sys.modules), "imported"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in ("--run_dir", "--ppo.learning_rate", "--resume", "--overwrite", "--num_images"):
        assert name in done.stdout


def test_the_module_answers_help():
    done = subprocess.run([sys.executable, "-m", "dalle_ppo.train", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--num_iterations" in done.stdout


@pytest.mark.parametrize(
    "error, code", [(ValueError("no such caption"), 2), (PermissionError(13, "denied", "x"), 2)]
)
def test_a_users_error_is_one_line_and_exit_2(error, code, capsys):
    def main(argv):
        raise error

    with pytest.raises(SystemExit) as caught:
        run_main(main)
    assert caught.value.code == code
    assert capsys.readouterr().err.splitlines() == [f"error: {error}"]


def test_a_bug_keeps_its_traceback():
    def main(argv):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_main(main)
