"""An objective's own section, and the defaults it brings."""

import pytest
import yaml
from parsing import parse, refused, write

from dalle_ppo.config import objectives
from dalle_ppo.config.command_line import load_config, to_yaml
from dalle_ppo.config.objective import objective_names
from dalle_ppo.config.objectives import ppo, reinforce
from dalle_ppo.config.sections import setting_names

MINE = """
from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    \"\"\"Mine.\"\"\"

    beta: float = 0.5
    \"\"\"How sharp it is.\"\"\"


DEFAULTS = {"rollout.samples_per_caption": 2, "kl.kl_coef": 0.5}
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """An objective from outside the package."""
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "mine.py").write_text(MINE)
    monkeypatch.setattr(objectives, "__path__", [*objectives.__path__, str(folder)])


def test_ppo_is_the_default():
    assert parse().objective == "ppo" and parse().objective_settings == ppo.Settings()
    assert parse("--ppo.clip_range", "0.1").objective_settings == ppo.Settings(clip_range=0.1)


def test_the_name_alone_is_enough():
    config = parse("--objective", "reinforce")
    assert config.objective_settings == reinforce.Settings()
    assert (config.update.epochs, config.update.minibatch_size, config.minibatches) == (1, None, 1)
    assert config.update.microbatch_size == parse().update.microbatch_size


def test_what_the_user_set_stays(tmp_path, mine):
    assert parse("--objective", "mine").kl.kl_coef == 0.5
    assert parse("--objective", "mine", "--kl.kl_coef", "0.7").kl.kl_coef == 0.7
    path = write(tmp_path, "objective: mine\nkl:\n  kl_coef: 0.6\n")
    config = parse("--config", path)
    assert (config.kl.kl_coef, config.rollout.samples_per_caption) == (0.6, 2)
    # A value that happens to be the general default counts as set.
    assert parse("--config", path, "--rollout.samples_per_caption", "1").rollout.samples_per_caption == 1


def test_an_objective_from_outside_has_a_section(tmp_path, mine, capsys):
    assert parse("--objective", "mine", "--mine.beta", "2").objective_settings.beta == 2
    assert "mine.beta" in setting_names()
    assert (
        refused("--objective", "mine", "--mine.bet", "2")
        == "unknown setting mine.bet; did you mean mine.beta?"
    )
    with pytest.raises(SystemExit):
        parse("--help")
    shown = capsys.readouterr().out
    assert "How sharp it is." in shown and "--ppo.clip_range" in shown


def test_explicit_conflicts_are_refused():
    assert "update.epochs is 2" in refused("--objective", "reinforce", "--update.epochs", "2")
    message = refused("--objective", "reinforce", "--update.minibatch_size", "24")
    assert "update.minibatch_size is 24" in message and "null" in message
    assert parse("--objective", "reinforce", "--update.minibatch_size", "96").minibatches == 1


def test_the_section_of_another_objective_is_refused(tmp_path):
    message = refused("--objective", "reinforce", "--ppo.clip_range", "0.1")
    assert message.startswith("there are settings for ppo, but objective is reinforce")
    assert refused("--config", write(tmp_path, "objective: reinforce\nppo:\n  dual_clip: null\n")) == message


@pytest.mark.parametrize(
    "name, way_out",
    [
        ("pp", "did you mean ppo?"),
        ("reinforc", "did you mean reinforce?"),
        ("zzz", f"one of {', '.join(objective_names())}"),
    ],
)
def test_an_unknown_objective(name, way_out):
    message = refused("--objective", name)
    assert message.startswith(f"objective is {name}; ") and message.endswith(way_out)


@pytest.mark.parametrize("argv", [("--ppo.clip_range", "0.3"), ("--objective", "reinforce")])
def test_the_saved_file_names_the_section_after_the_objective(argv, tmp_path):
    config = parse(*argv)
    path = write(tmp_path, to_yaml(config))
    assert load_config(path) == config
    saved = yaml.safe_load(to_yaml(config))
    assert "objective_settings" not in saved and "reinforce" not in saved
    assert ("ppo" in saved) == (config.objective == "ppo")
