"""Captions one a line: what is no table, and what text files cannot hold."""

import pytest
from caption_files import captions_of, found, write, write_table


@pytest.mark.parametrize(
    "content",
    [
        "text, logo, red boat\n",
        "a boat, caption, at sea\n",
        "text, logo\na tree\n",
        "text, logo\na tree, a boat\nthe sea\n",
        "caption, a boat, a sea, a lake\na red boat, at night\n",
        "text, logo\na tree, a boat, the sea, the sky, at night\n",
    ],
)
def test_captions_that_name_a_column_are_no_table(content, tmp_path):
    write(tmp_path / "a.txt", content)
    assert [text for text, _ in captions_of(tmp_path)] == content.splitlines()


@pytest.mark.parametrize(
    "content",
    [
        "n,caption\n1,a boat\n2,a tree, at sea\n",
        'n,caption\n1,"a boat, a tree, the sea"\n2,a tree\n',
        "image,caption\n1.jpg,A child in a pink dress , up , and away\n2.jpg,a boat\n",
        "caption\turl\na boat\thttp://x/1\n",
    ],
)
def test_tables_in_text_files_are_still_seen(content, tmp_path):
    write(tmp_path / "a.txt", content)
    with pytest.raises(ValueError, match="looks like a table with columns"):
        captions_of(tmp_path)


def test_thresholds_need_scores_in_text_files_too(tmp_path):
    write(tmp_path / "a.txt", "one\n")
    with pytest.raises(ValueError, match=r"a\.txt: text files have no columns; .*captions\.tag_thresholds"):
        captions_of(tmp_path, tag_thresholds={"low": 0, "high": 0.5})
    (tmp_path / "a.txt").unlink()
    write(tmp_path / "punsafe=0.9" / "a.txt", "one\n")
    assert captions_of(tmp_path, tag_thresholds={"low": 0, "high": 0.5}) == [("one", "high")]
    write_table(tmp_path / "b.parquet", TEXT=["two"], punsafe=[0.1])
    seen = found(tmp_path, tag_thresholds={"low": 0, "high": 0.5})
    assert [left.why for left in seen.left_out] == ["text files have no columns, but the settings name some"]
