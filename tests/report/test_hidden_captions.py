"""Captions tagged NSFW can be hidden from the report, and no caption or tag becomes markup in it."""

from pathlib import Path

import numpy as np
import pytest
from scripts import load_script

from dalle_ppo.report.page import write_report

report = load_script(Path(__file__).with_name("test_report.py"))
MARKUP = "<img src=x onerror=alert(1)>\"'></figcaption><script>alert(1)</script>"


def with_markup(side: dict) -> None:
    side["caption"] = np.array([f"{MARKUP} {n}" for n in range(len(side["tag"]))])
    side["tag"] = np.array([MARKUP if tag == "UNSURE" else tag for tag in side["tag"]])


def test_markup_in_captions_and_tags_is_text(tmp_path):
    report.write_run(tmp_path / "demo", edit=with_markup)
    (tmp_path / "demo" / "config.yaml").write_text(f"captions: {{source: '{MARKUP.replace(chr(39), '')}'}}\n")
    page = write_report(tmp_path / "demo").read_text()
    assert "&lt;script&gt;" in page and "&lt;img src=x" in page
    parsed = report.Balanced(page)
    assert not any(tag == "script" for tag, _ in parsed.seen)
    assert not any(name.startswith("on") for _, attributes in parsed.seen for name in attributes)
    assert "<img src=x" not in page


@pytest.mark.parametrize("setting, hidden", [("true", True), ("false", False), (None, False)])
def test_captions_tagged_nsfw_are_hidden(tmp_path, setting, hidden):
    def edit(side: dict) -> None:
        side["caption"] = np.array([f"{tag} words {n}" for n, tag in enumerate(side["tag"])])

    report.write_run(tmp_path / "demo", edit=edit)
    if setting is not None:
        (tmp_path / "demo" / "config.yaml").write_text(f"report: {{hide_captions: {setting}}}\n")
    page = write_report(tmp_path / "demo").read_text()
    assert ("NSFW words" not in page) == hidden and ("caption hidden" in page) == hidden
    assert "UNLIKELY words" in page
