"""Output folders: whole or absent, and never lost to another process that writes the same one."""

import pytest

from dalle_ppo.base.new_folder import refuse_existing, whole_folder


def write(out, text):
    with whole_folder(out) as folder:
        (folder / "file").write_text(text)


def test_a_folder_is_whole_or_absent(tmp_path):
    write(tmp_path / "deep" / "a", "mine")
    assert (tmp_path / "deep" / "a" / "file").read_text() == "mine"
    with pytest.raises(KeyError), whole_folder(tmp_path / "b") as folder:
        (folder / "file").write_text("half")
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
    with pytest.raises(ValueError, match="already exists"):
        refuse_existing(tmp_path / "deep")


def test_of_two_processes_that_write_one_folder_neither_loses_its_work(tmp_path):
    out = tmp_path / "a"
    with pytest.raises(ValueError, match=r"another process meanwhile; the result is in \S+a-3$"):  # noqa: SIM117
        with whole_folder(out) as folder:
            (folder / "file").write_text("mine")
            write(out, "theirs")
            write(tmp_path / "a-2", "old")
    texts = {path.name: (path / "file").read_text() for path in tmp_path.iterdir()}
    assert texts == {"a": "theirs", "a-2": "old", "a-3": "mine"}
