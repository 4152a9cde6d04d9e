"""Reads settings as a command line does, for tests."""

from pathlib import Path

import pytest

from dalle_ppo.config.command_line import parse_command_line
from dalle_ppo.config.settings import Config


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
