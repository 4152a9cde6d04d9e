"""Settings and runs of earlier versions: one line says what became of them."""

import re
from pathlib import Path

import pytest
from parsing import parse, refused, write

from dalle_ppo.base.run_format import FORMAT
from dalle_ppo.config.command_line import load_config, to_yaml
from dalle_ppo.config.renamed import CONSTANTS, RENAMED
from dalle_ppo.config.sections import setting_names

CHANGELOG = Path(__file__).parents[2] / "CHANGELOG.md"
# What follows a new name says what else changed.
NEW = {old: re.search(r"\w+\.\w+|objective", new)[0] for old, new in RENAMED.items()}


def test_no_old_name_is_a_setting_and_every_new_one_is():
    names = set(setting_names())
    assert not {*RENAMED, *CONSTANTS} & names
    assert set(NEW.values()) <= names


@pytest.mark.parametrize("old", [*RENAMED, *CONSTANTS])
def test_an_old_name_is_refused_with_the_new_one(old, tmp_path):
    expected = RENAMED.get(old, CONSTANTS.get(old))
    section, name = old.split(".")
    for message in (
        refused(f"--{old}", "1"),
        refused("--config", write(tmp_path, f"{section}:\n  {name}: 1\n")),
    ):
        assert message.startswith(f"setting {old} is now ") and expected in message


@pytest.mark.parametrize("old", [*RENAMED, *CONSTANTS])
def test_the_changelog_says_so_too(old):
    row = next(
        line for line in CHANGELOG.read_text(encoding="utf-8").splitlines() if line.startswith(f"| `{old}` |")
    )
    assert RENAMED.get(old, CONSTANTS.get(old)) in row.replace("`", "")


def test_a_run_without_a_format_is_of_the_first(tmp_path):
    path = write(tmp_path, "seed: 1\nppo:\n  epochs: 1\n")
    with pytest.raises(ValueError, match=r"settings\.yaml has format 1, .* use dalle_ppo 0\.1") as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


def test_a_users_own_file_needs_no_format(tmp_path):
    assert parse("--config", write(tmp_path, "seed: 1\n")).seed == 1


def test_a_later_format_is_refused(tmp_path):
    path = write(tmp_path, to_yaml(parse()).replace(f"format: {FORMAT}", f"format: {FORMAT + 1}"))
    with pytest.raises(ValueError, match="a newer dalle_ppo"):
        load_config(path)
    assert f"format {FORMAT + 1}" in refused("--config", path)
