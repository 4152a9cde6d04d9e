"""The examples in docs/rewards.md are settings that exist, with gates that refer to terms that do."""

import re
from pathlib import Path

import pytest
import yaml

from dalle_ppo.config.term import read_terms, term_names

PAGE = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda text: re.search(r"name: (\w+)", text)[1])
def test_examples_are_read(example):
    content = yaml.safe_load(example)
    assert read_terms(content if isinstance(content, list) else content["reward"]["terms"])


@pytest.mark.parametrize("name", term_names())
def test_every_term_is_explained(name):
    assert f"| `{name}` |" in PAGE
