"""A file is replaced whole or not at all, and nothing else is left in its folder."""

import os

import pytest

from dalle_ppo.base import atomic
from dalle_ppo.base.atomic import atomic_write


def everything(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def by_function(path):
    with path.open("wb") as file:
        file.write(b"caf\xc3\xa9\n")


@pytest.mark.parametrize("content", ["caf\u00e9\n", b"caf\xc3\xa9\n", by_function])
@pytest.mark.parametrize("before", [None, b"old"])
def test_text_bytes_and_functions_write_the_same_file(tmp_path, content, before):
    if before is not None:
        (tmp_path / "a.json").write_bytes(before)
    atomic_write(str(tmp_path / "a.json"), content)
    assert everything(tmp_path) == {"a.json": b"caf\xc3\xa9\n"}


def test_a_function_is_given_a_path_of_the_same_folder_and_ending(tmp_path):
    """Writers such as numpy's add their own ending to any other; only within a folder is a rename whole."""
    given = []
    atomic_write(tmp_path / "a.tar.npz", lambda path: (given.append(path), path.write_bytes(b"")))
    assert given[0].parent == tmp_path and given[0].name.endswith(".npz") and given[0].name != "a.tar.npz"


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("at", ["content", "flush", "replace"])
def test_a_failure_midway_leaves_the_old_file_whole_and_no_litter(tmp_path, monkeypatch, error, at):
    (tmp_path / "a.txt").write_bytes(b"old")

    def fail(*args):
        raise error

    def half(path):
        path.write_bytes(b"half of the n")
        raise error

    if at == "flush":
        monkeypatch.setattr(atomic, "flush", fail)
    if at == "replace":
        monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(type(error)):
        atomic_write(tmp_path / "a.txt", half if at == "content" else "new")
    assert everything(tmp_path) == {"a.txt": b"old"}


def test_the_file_is_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    done, (sync, replace) = [], (os.fsync, os.replace)
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append("flush"), sync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda *paths: (done.append("rename"), replace(*paths))[1])
    atomic_write(tmp_path / "a.txt", "new")
    assert done == ["flush", "rename"]


def test_a_folder_that_is_absent_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        atomic_write(tmp_path / "absent" / "a.txt", "new")
