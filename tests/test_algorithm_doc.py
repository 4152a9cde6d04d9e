"""docs/algorithm.md links to the lines where things are.

`python tests/test_algorithm_doc.py` renews the lines.
"""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

DOC = Path(__file__).parents[1] / "docs" / "algorithm.md"
LINK = re.compile(r"\[`(\w+)`\]\(\.\./(dalle_ppo/[\w/]+\.py)#L(\d+)\)")
SETTING = re.compile(r"`((?:credit|actor|update|ppo|kl|critic|policy|rollout|reward)\.\w+)")


@cache
def defined(file: str) -> dict[str, int]:
    """Line of every function, method and class of a file."""
    tree = ast.parse((DOC.parents[1] / file).read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.ClassDef)
    return {node.name: node.lineno for node in ast.walk(tree) if isinstance(node, kinds)}


LINKS = sorted({match.groups() for match in LINK.finditer(DOC.read_text(encoding="utf-8"))})


def test_there_are_links_and_all_of_them_have_a_line():
    text = DOC.read_text(encoding="utf-8")
    assert len(LINKS) > 25
    assert len(re.findall(r"\]\(\.\./dalle_ppo/", text)) == len(LINK.findall(text))


@pytest.mark.parametrize("name, file, line", LINKS, ids=lambda x: str(x).removeprefix("dalle_ppo/"))
def test_the_link_leads_to_the_line_of_its_function(name, file, line):
    assert defined(file).get(name) == int(line), "run python tests/test_algorithm_doc.py"


def test_details_are_numbered_and_each_has_code_and_source():
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", DOC.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, len(rows) + 1))
    for number, row in rows:
        _, code, source = row.split(" | ")
        assert LINK.search(code) and source.strip(), number
        assert "http" in source or source.startswith(("ours", "definition")), number


def test_settings_that_are_named_exist():
    from dalle_ppo.config.sections import setting_names

    named = set(SETTING.findall(DOC.read_text(encoding="utf-8")))
    assert len(named) > 8 and named <= set(setting_names())


def renewed(match: re.Match) -> str:
    name, file, _ = match.groups()
    return f"[`{name}`](../{file}#L{defined(file)[name]})"


if __name__ == "__main__":
    DOC.write_text(LINK.sub(renewed, DOC.read_text(encoding="utf-8")), encoding="utf-8")
