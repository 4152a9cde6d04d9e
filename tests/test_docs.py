"""README and docs: short, with links that lead somewhere, settings that exist and commands that parse."""

import re
import shlex
from functools import cache
from pathlib import Path

import pytest
import torch

from dalle_ppo.build.rewards import build_reward
from dalle_ppo.config.command_line import parse_command_line, setting_names
from dalle_ppo.train import FLAGS

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "notebooks" / "README.md"])
IDS = [page.relative_to(ROOT).as_posix() for page in PAGES]
# Commands with what exists in CONTRIBUTING.md's examples only; tests/test_contributing.py has them.
EXAMPLES = ("brightness", "truncated", "colours")
SECTIONS = "actor|captions|clip|credit|critic|evaluation|kl|model|policy|ppo|reward|rollout|update"


@cache
def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```", "", text_of(page), flags=re.MULTILINE | re.DOTALL)


def todays_part(page: Path) -> str:
    """A page without the table of names that settings once had."""
    return text_of(page).split("\n## Settings of version")[0]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_is_short():
    page = ROOT / "README.md"
    assert len(text_of(page).splitlines()) <= 144
    for paragraph in prose(page).split("\n\n"):
        lines = paragraph.strip().splitlines()
        assert len(lines) <= 6 or lines[0].startswith(("|", "1.")), lines[0]


def test_the_list_of_contents_names_every_page():
    listed = re.findall(r"^\| \[(\w+\.md)\]\(\1\)", text_of(ROOT / "docs" / "README.md"), re.MULTILINE)
    assert sorted(listed) == sorted(p.name for p in ROOT.glob("docs/*.md") if p.name != "README.md")


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", prose(page)):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), target


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda p: p.name
)
def test_settings_that_are_named_exist(page):
    named = set(
        re.findall(rf"(?:`|--)((?:{SECTIONS})\.(?!json|py\b|md\b|yaml|safetensors)\w+)", todays_part(page))
    )
    assert named <= set(setting_names())


def commands() -> list[list[str]]:
    """The arguments of every `python -m dalle_ppo.train` in a code block."""
    lines = [line for page in PAGES for line in text_of(page).splitlines()]
    started = [
        line.split("&& ")[-1] for line in lines if re.match(r"(pip .* && )?python -m dalle_ppo\.train", line)
    ]
    return [shlex.split(line, comments=True)[3:] for line in started]


@pytest.mark.parametrize("arguments", commands(), ids=lambda arguments: " ".join(arguments)[:60])
def test_commands_parse(arguments, monkeypatch):
    if any(name in " ".join(arguments) for name in EXAMPLES):
        pytest.skip("of an example of CONTRIBUTING.md")
    monkeypatch.chdir(ROOT)
    parse_command_line(arguments, "train", "", FLAGS)


@pytest.mark.parametrize("page", ["README.md", "docs/rewards.md"])
def test_the_reward_of_ones_own_is_a_reward(page, tmp_path, monkeypatch):
    code = re.search(r"```python\n(# my_rewards\.py.*?)```", text_of(ROOT / page), re.DOTALL)[1]
    name = "rewards_of_" + re.sub(r"\W", "_", page)
    (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    config = parse_command_line(
        ["--reward.terms", f"[{{name: '{name}:colourful', weight: 5}}]"], "train", ""
    )[0]
    grey, red = torch.full((3, 2, 2), 0.5), torch.tensor([1.0, 0.0, 0.0])[:, None, None].expand(3, 2, 2)
    result = build_reward(config, None, torch.device("cpu"))(torch.stack([grey, red]), ["a", "b"])
    assert result.total.tolist() == pytest.approx([0.0, 5 / 3**0.5])
