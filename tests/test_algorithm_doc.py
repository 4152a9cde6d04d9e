"""docs/algorithm.md links each thing it names to the file that defines it."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

DOC = Path(__file__).parents[1] / "docs" / "algorithm.md"
LINK = re.compile(r"\[`(\w+)`\]\(\.\./(dalle_ppo/[\w/]+\.py)\)")
SETTING = re.compile(r"`((?:actor|update|credit|ppo|kl|critic|policy|rollout|reward)\.\w+)")
TEXT = DOC.read_text(encoding="utf-8")
LINKS = sorted({match.groups() for match in LINK.finditer(TEXT)})


@cache
def defined(file: str) -> set[str]:
    """Every function, method and class of a file."""
    tree = ast.parse((DOC.parents[1] / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def test_every_link_into_the_code_names_a_symbol_and_no_line():
    """Lines move with every edit."""
    assert len(LINKS) > 25
    assert TEXT.count("](../dalle_ppo/") == len(LINK.findall(TEXT))


@pytest.mark.parametrize("name, file", LINKS, ids=lambda x: str(x).removeprefix("dalle_ppo/"))
def test_the_linked_file_defines_the_symbol(name, file):
    assert name in defined(file)


def test_details_are_numbered_and_each_has_code_and_source():
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", TEXT, flags=re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, len(rows) + 1))
    for number, row in rows:
        _, code, source = row.split(" | ")
        assert LINK.search(code) and source.strip(), number
        assert "http" in source or source.startswith(("ours", "definition")), number


def test_settings_that_are_named_exist():
    from dalle_ppo.config.command_line import setting_names

    named = set(SETTING.findall(TEXT))
    assert len(named) > 8 and named <= set(setting_names())
