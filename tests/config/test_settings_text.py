"""What is written beside each setting, in --help and in docs/settings.md, and that some code reads it."""

import ast
import dataclasses
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from dalle_ppo.config.clip import ClipConfig
from dalle_ppo.config.command_line import parse_command_line
from dalle_ppo.config.document import default, described, settings_page
from dalle_ppo.config.kinds import kind
from dalle_ppo.config.objective import objective_names
from dalle_ppo.config.sections import all_sections
from dalle_ppo.config.settings import Config
from dalle_ppo.config.term import Common, TermConfig, settings_class, term_names

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "dalle_ppo"
CLASSES = [*(record for _, record in all_sections()), Common, *map(settings_class, term_names())]


@pytest.mark.parametrize("record", CLASSES, ids=lambda c: f"{c.__module__}.{c.__name__}")
def test_every_setting_is_described(record):
    assert all(described(record)[f.name] for f in dataclasses.fields(record))


# What all terms have is read with their list, in config/term.py.
READ_OUTSIDE = [record for record in CLASSES if record is not Common]
SETTINGS = sorted({f.name for record in READ_OUTSIDE for f in dataclasses.fields(record)})


@cache
def attributes_read() -> set[str]:
    """Names of all attributes that code outside the settings reads; comments and texts do not count."""
    sources = [path for path in PACKAGE.rglob("*.py") if "config" not in path.relative_to(PACKAGE).parts]
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


ALGORITHM = ["policy", "rollout", "credit", "actor", "update", *objective_names(), "kl", "critic"]
# How a description says when to change its setting.
WHEN = r"\b(Use|Set|Raise|Lower|Less|More|Off|Larger|Change|[Nn]o reason to)\b"


@pytest.mark.parametrize("section", ALGORITHM)
def test_settings_of_the_algorithm_give_their_default_its_source_and_when_to_change_it(section):
    record = dict(all_sections())[section]
    for f in dataclasses.fields(record):
        text = described(record)[f.name]
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


def test_the_page_of_settings_is_up_to_date():
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert page == settings_page(), "run python -m dalle_ppo.config.document docs/settings.md"


def test_help_shows_the_text_beside_a_setting(capsys):
    with pytest.raises(SystemExit):
        parse_command_line(["--help"], "test", "")
    shown = " ".join(capsys.readouterr().out.split())
    for text in ("Lower it when `approx_kl` jumps.", "Seed of everything random in training."):
        assert text in shown


@pytest.mark.parametrize(
    "annotation, words",
    [
        (str | None, "text or null"),
        (list[ClipConfig], "list of {model, pretrained, quick_gelu, same_as}"),
        (list[dict[str, Any]], "list of settings"),
        (dict[str, float] | None, "text to number or null"),
    ],
)
def test_types_are_told_in_words(annotation, words):
    assert kind(annotation) == words


@pytest.mark.parametrize(
    "record, name, shown",
    [
        (Config, "run_dir", "`null`"),
        (Config, "seed", "`0`"),
        (Common, "weight", "`1.0`"),
        (TermConfig, "label", "none"),
    ],
)
def test_defaults_are_told_as_yaml(record, name, shown):
    assert default(record.__dataclass_fields__[name]) == shown
