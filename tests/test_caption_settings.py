"""Every setting under `captions` reaches the captions that are drawn."""

import csv

import pytest

from dalle_ppo.build import build_captions
from dalle_ppo.caption_text import split_of
from dalle_ppo.config import CaptionsConfig, Config

ROWS = [
    ("red boat", "x"),
    ("RED boat!", "x"),
    ("a very long caption of a green tree", "x"),
    ("&lt;b&gt;blue&lt;/b&gt; cup", "y"),
    ("красная лодка", "y"),
]


@pytest.fixture
def source(tmp_path):
    """A table with captions in `words` and in `TEXT`, tags in `kind` and in `tag`, none of them held out."""
    rows = [row for row in ROWS if split_of(row[0]) == "train"]
    assert len(rows) == len(ROWS)
    with open(tmp_path / "a.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["words", "kind", "TEXT", "tag"])
        writer.writerows([(words, kind, f"text {i}", "t") for i, (words, kind) in enumerate(rows)])
    return tmp_path / "a.csv"


def drawn(source, **settings) -> set[tuple[str, str]]:
    """Texts and tags of what is drawn from the table's `words` and `kind`."""
    settings = {"column": "words", "tag_column": "kind", **settings}
    config = Config(captions=CaptionsConfig(source=str(source), **settings))
    return {(r.text, r.tag) for r in build_captions(config, 0, 0, "train").next_batch(40)}


def test_columns(source):
    assert drawn(source, drop_duplicates=False) == set(ROWS)
    by_name = drawn(source, column=None, tag_column=None)
    assert by_name <= {(f"text {i}", "t") for i in range(5)} and len(by_name) >= 3


def test_shares(source):
    assert {tag for _, tag in drawn(source, shares={"y": 1.0})} == {"y"}


def test_cleaning(source):
    assert ("blue cup", "y") in drawn(source, clean=True)
    assert ("blue cup", "y") not in drawn(source)


@pytest.mark.parametrize("drop", [True, False])
def test_duplicates(source, drop):
    config = Config(captions=CaptionsConfig(str(source), "words", "kind", drop_duplicates=drop))
    captions = build_captions(config, 0, 0, "train")
    captions.next_batch(5)
    assert ("captions/skipped_duplicate" in captions.metrics()) == drop


def test_lengths_and_letters(source):
    texts = {text for text, _ in drawn(source, drop_duplicates=False, min_chars=9, max_chars=20)}
    assert texts == {"RED boat!", "красная лодка"}
    assert ("красная лодка", "y") not in drawn(source, min_latin_share=0.5)


def test_lists(source, tmp_path):
    (tmp_path / "list.txt").write_text("# a list\nboat\nblue\n")
    lists = str(tmp_path / "list.txt")
    texts = {text for text, _ in drawn(source, blocklist=lists)}
    assert texts == {ROWS[2][0], "красная лодка"}
    texts = {text for text, _ in drawn(source, drop_duplicates=False, allowlist=lists)}
    assert texts == {"red boat", "RED boat!", ROWS[3][0]}
    for name in ("blocklist", "allowlist"):
        with pytest.raises(ValueError, match=r"absent\.txt"):
            drawn(source, **{name: "absent.txt"})


def test_bad_files(source):
    (source.parent / "b.csv").write_bytes(b"words,kind\n\xff\xfe,x\n")
    with pytest.raises(ValueError, match=r"b\.csv"):
        drawn(source.parent)
    with pytest.warns(UserWarning, match=r"b\.csv"):
        assert drawn(source.parent, skip_bad_files=True)


@pytest.mark.parametrize(
    "settings, named",
    [
        ({"min_chars": 9, "max_chars": 3}, r"captions\.min_chars is 9"),
        ({"min_latin_share": 2.0}, r"captions\.min_latin_share is 2\.0"),
        ({"shares": {"x": 0.7}}, r"captions\.shares"),
        ({"column": "absent"}, r"captions\.column"),
        ({"tag_column": "absent"}, r"captions\.tag_column"),
    ],
)
def test_wrong_settings_are_named(source, settings, named):
    with pytest.raises(ValueError, match=named):
        drawn(source, **settings)
