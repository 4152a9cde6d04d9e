"""The command that started a run, given again with --resume, changes nothing."""

import pytest

from dalle_ppo import train
from dalle_ppo.config.command_line import parse_command_line, to_yaml

BRIGHT = "{name: mine:bright, weight: 5}"
PARTS = "[{name: aesthetic, weight: 2}, {name: mine:red}]"


def begun(tmp_path, *argv: str):
    """The settings with which a run begins; saves them as the run does."""
    config, _ = parse_command_line(list(argv), "train", "")
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    return config


def resumed(tmp_path, *argv: str):
    return train.resumed_settings(tmp_path, ["--resume", *argv])[0]


@pytest.mark.parametrize(
    "argv",
    [
        ("--reward.terms+", BRIGHT),
        (f"--reward.terms+={BRIGHT}", "--reward.terms+", BRIGHT),
        ("--reward.terms+", PARTS, "--seed", "3"),
        ("--reward.terms+", '{name: mine:bright, only_if: "nsfw <= 0.1"}'),
        ("--evaluation.judges+", "aesthetic", "--evaluation.judges+", "{name: mine:bright, weight: -1}"),
    ],
)
def test_the_command_of_the_start_adds_nothing_twice(argv, tmp_path, capsys):
    config = begun(tmp_path, *argv)
    for _ in range(2):
        again = resumed(tmp_path, *argv)
        assert (again.reward, again.evaluation) == (config.reward, config.evaluation)
        (tmp_path / "config.yaml").write_text(to_yaml(again), encoding="utf-8")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * sum("+" in word for word in argv)
    assert all(line.endswith("the run has this entry already, so it is not added again") for line in lines)


def test_a_new_entry_is_added(tmp_path):
    begun(tmp_path, "--reward.terms+", BRIGHT)
    names = ["nsfw", "clip_similarity", "mine:bright"]
    more = resumed(tmp_path, "--reward.terms+", BRIGHT.replace("5", "6"))
    assert [term["name"] for term in more.reward.terms] == [*names, "mine:bright"]
    assert [term["weight"] for term in more.reward.terms[2:]] == [5, 6]
    part = resumed(tmp_path, "--reward.terms+", f"[{BRIGHT}, {{name: mine:red}}]")
    assert [term["name"] for term in part.reward.terms] == [*names, "mine:red"]


def test_entries_count_against_the_list_that_they_are_added_to(tmp_path):
    """A list given anew replaces the saved one, and what is added to it is not there yet."""
    file = tmp_path / "start.yaml"
    file.write_text("reward: {terms: [{name: mine:red}]}\n")
    for given in (["--config", str(file)], ["--reward.terms", "[{name: mine:red}]"]):
        argv = [*given, "--reward.terms+", BRIGHT]
        config = begun(tmp_path, *argv)
        assert [term["name"] for term in config.reward.terms] == ["mine:red", "mine:bright"]
        assert resumed(tmp_path, *argv).reward == config.reward


def test_a_wrong_entry_is_refused_as_ever(tmp_path):
    begun(tmp_path)
    with pytest.raises(ValueError, match="astetic"):
        resumed(tmp_path, "--reward.terms+", "{name: astetic}")
