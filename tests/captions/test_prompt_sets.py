"""Prompt sets as their publishers lay them out."""

import json

import pytest

from dalle_ppo.captions.__main__ import main
from dalle_ppo.captions.source import CaptionRequest, captions_of_file, open_captions
from dalle_ppo.captions.streams import DrawSettings

PARTI = (
    "Prompt\tCategory\tChallenge\tNote\n"
    "bond\tAbstract\tBasic\tBiology-inspired concepts\n"
    'the words "Fly, an airplane" on a wall\tOutdoor Scenes\tComplex\t\n'
    '"24 inch" in neon\tFood & Beverage\tBasic\tDescription of "Dogs Playing Poker"\n'
)
DRAWBENCH = (
    "Prompts,Category\n"
    "A red colored car.,Colors\n"
    '"A sign, that says ""Hello World"".",Text\n'
    '"One cat,\nand two dogs.",Counting\n'
)


def read(source):
    return {record.text: record.tag for record in captions_of_file(source, 100)}


def test_partiprompts_keeps_its_quotes(tmp_path):
    file = tmp_path / "PartiPrompts.tsv"
    file.write_text(PARTI)
    assert read(f"partiprompts:{file}") == {
        "bond": "Abstract",
        'the words "Fly, an airplane" on a wall': "Outdoor Scenes",
        '"24 inch" in neon': "Food & Beverage",
    }


def test_drawbench_with_quoted_prompts(tmp_path):
    file = tmp_path / "DrawBench.csv"
    file.write_text(DRAWBENCH)
    found = {" ".join(text.split()): tag for text, tag in read(f"drawbench:{file}").items()}
    assert found == {
        "A red colored car.": "Colors",
        'A sign, that says "Hello World".': "Text",
        "One cat, and two dogs.": "Counting",
    }


@pytest.mark.parametrize("name, text", [("partiprompts", DRAWBENCH), ("drawbench", PARTI)])
def test_another_table_is_refused(tmp_path, name, text):
    file = tmp_path / f"other.{'tsv' if text is PARTI else 'csv'}"
    file.write_text(text)
    with pytest.raises(ValueError, match=f"{file}.*Prompt"):
        read(f"{name}:{file}")


def hpdv2(folder, styles=("anime", "concept-art", "paintings", "photo")):
    for style in styles:
        (folder / f"{style}.json").write_text(json.dumps([f"{style} {n}" for n in range(3)]))
    return folder


def test_hpdv2_has_a_tag_for_each_style(tmp_path):
    found = read(f"hpdv2:{hpdv2(tmp_path)}")
    assert len(found) == 12 and all(text.startswith(tag) for text, tag in found.items())
    assert set(read(f"hpdv2:{tmp_path / 'photo.json'}").values()) == {"photo"}


def test_an_overview_of_hpdv2_says_of_no_tag_that_every_caption_has_it(tmp_path, cli):
    out = cli(main, f"hpdv2:{hpdv2(tmp_path)}").out
    assert "anime 3 (25.0%)" in out and "photo 3 (25.0%)" in out and "every caption is" not in out
    out = cli(main, f"hpdv2:{tmp_path / 'photo.json'}").out
    assert "every caption is photo" in out and "photo 3 (100.0%)" in out


def test_incomplete_or_other_files_of_hpdv2_are_refused(tmp_path):
    hpdv2(tmp_path, ("anime", "photo"))
    with pytest.raises(ValueError, match=r"lacks concept-art.json, paintings.json"):
        read(f"hpdv2:{tmp_path}")
    (tmp_path / "test.json").write_text(json.dumps([{"prompt": "a", "rank": [1]}]))
    with pytest.raises(ValueError, match=r"captions.column prompt"):
        read(f"hpdv2:{tmp_path / 'test.json'}")
    assert captions_of_file(str(tmp_path / "test.json"), 5)[0].text == "a"


def test_nested_json_of_hpdv2_is_one_line(tmp_path):
    (tmp_path / "photo.json").write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(ValueError, match=r"photo\.json: is nested too deeply"):
        read(f"hpdv2:{tmp_path / 'photo.json'}")


def test_categories_can_be_drawn_in_shares(tmp_path):
    request = CaptionRequest(DrawSettings(split=None), shares={"photo": 1.0})
    source = open_captions(f"hpdv2:{hpdv2(tmp_path)}", request)
    assert {record.tag for record in source.next_batch(6)} == {"photo"}
