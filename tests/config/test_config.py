"""Settings: files, overrides, what is refused and with which words."""

import re
import subprocess
import sys

import pytest
import yaml
from parsing import parse, refused, write

from dalle_ppo.config.command_line import load_config, parse_command_line, run_main, to_yaml
from dalle_ppo.config.objective import objective_names
from dalle_ppo.config.sections import all_sections, setting_names
from dalle_ppo.config.settings import Config


def test_no_arguments_give_the_defaults():
    assert parse() == Config()


def test_a_file_then_dotted_overrides_whatever_their_order(tmp_path):
    path = write(tmp_path, "seed: 3\nactor:\n  learning_rate: 1e-4\nupdate:\n  epochs: 4\n")
    config = parse("--config", path, "--update.epochs", "5", "--kl.kl_coef", "0.5")
    assert (config.seed, config.actor.learning_rate) == (3, 1e-4)
    assert (config.update.epochs, config.kl.kl_coef) == (5, 0.5)
    assert config.update.minibatch_size == Config().update.minibatch_size


def test_later_files_win(tmp_path):
    (tmp_path / "a.yaml").write_text("seed: 1\nnum_iterations: 7\n")
    (tmp_path / "b.yaml").write_text("seed: 2\n")
    config = parse("--config", str(tmp_path / "a.yaml"), "--config", str(tmp_path / "b.yaml"))
    assert (config.seed, config.num_iterations) == (2, 7)


def test_null_switches_a_setting_off(tmp_path):
    assert parse("--captions.shares", "null").captions.shares is None
    assert (
        parse("--config", write(tmp_path, "ppo:\n  dual_clip: null\n")).objective_settings.dual_clip is None
    )


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
        *("--actor.adam_eps", "1e-9", "--actor.learning_rate", "3.1e-05", "--ppo.dual_clip", "null"),
        *(
            "--reward.terms+",
            '{name: "mine:bright", weight: -0.5}',
            "--kl.target",
            "30.0",
            "--actor.entropy_coef",
            "0",
        ),
        *("--credit.normalise_scores", "false", "--policy.start_token", "1023"),
    )
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(path) == config
    assert config.actor.adam_eps == 1e-9 and config.captions.shares == {"NSFW": 0.25, "OTHER": 0.75}


def test_the_resolved_copy_names_every_setting():
    def names(settings: dict, prefix: str = ""):
        for key, value in settings.items():
            yield prefix + key
            if isinstance(value, dict) and key != "shares":
                yield from names(value, f"{prefix}{key}.")

    others = set(objective_names()) - {Config.objective}
    expected = [name for name in setting_names() if name.split(".")[0] not in others]
    assert sorted(names(yaml.safe_load(to_yaml(Config())))) == sorted(["format", *expected])


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
    expected = f"{name} is {'3' if '3' in value else 'None'}, but must be a section of settings"
    assert expected in refused("--config", write(tmp_path, f"seed: 1\n{section}\n"))


@pytest.mark.parametrize(
    "arguments, near",
    [
        (["--model", "mini"], "--model.path mini? Its settings are path, revision, frozen_dtype"),
        (["--model=mini"], "--model.path mini?"),
        (["--kl", "3"], "--kl.kl_coef 3?"),
        (["--model"], "--model.path VALUE?"),
        (["--grpo"], "--objective grpo?"),
        (["--grpo", "--seed", "3"], "--objective grpo?"),
    ],
)
def test_a_value_for_a_section_offers_a_setting(arguments, near):
    name = arguments[0].partition("=")[0]
    assert refused(*arguments).startswith(f"{name} is a section, not a setting; did you mean {near}")


def test_a_section_may_be_given_as_a_whole():
    assert parse("--model", "{path: mini, revision: abc}").model.revision == "abc"


@pytest.mark.parametrize("text", ["", "# seed: 1\n", "seed\n"])
def test_a_file_without_settings(text, tmp_path):
    assert "does not contain settings as YAML" in refused("--config", write(tmp_path, text))


def test_a_setting_like_no_other_points_to_help():
    assert "--help" in refused("--zzzzzzzz", "1")


def test_an_unknown_group_in_a_file_is_named(tmp_path):
    assert "pp.epochs" in refused("--config", write(tmp_path, "pp:\n  epochs: 1\n"))


@pytest.mark.parametrize(
    "name, value",
    [
        ("seed", "x"),
        ("num_iterations", "2.5"),
        ("actor.learning_rate", "fast"),
        ("update.epochs", "true"),
        ("credit.whiten_advantages", "maybe"),
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
    path = write(tmp_path, "format: 2\nseeed: 1\n")
    with pytest.raises(ValueError, match=r"settings\.yaml: unknown setting seeed; did you mean seed\?"):
        load_config(path)


def test_derived_sizes():
    config = parse("--rollout.rollout_batch_size", "24", "--update.minibatch_size", "8")
    assert (config.minibatches, config.captions_per_iteration) == (3, 24)
    more = ("--rollout.rollout_batch_size", "24", "--update.minibatch_size", "24")
    config = parse(*more, "--rollout.samples_per_caption", "4")
    assert (config.minibatches, config.captions_per_iteration) == (1, 6)


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
    for name in (
        "--run_dir",
        "--actor.learning_rate",
        "--ppo.clip_range",
        "--resume",
        "--overwrite",
        "--num_images",
    ):
        assert name in done.stdout


def test_the_module_answers_help():
    done = subprocess.run([sys.executable, "-m", "dalle_ppo.train", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--num_iterations" in done.stdout
    options = set(re.findall(r"^  (--[\w.]+)", done.stdout, re.MULTILINE))
    sections = {f"--{section}" for section, _ in all_sections()}
    assert "--model.path" in options and not options & sections, "a section takes no value"


def test_settings_are_not_printed_with_flags_in_them():
    """A file with `dry_run: true`, given back with --config, would make each run a dry one."""
    assert "unknown setting print_config" in refused("--seed", "3", "--print_config")


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
