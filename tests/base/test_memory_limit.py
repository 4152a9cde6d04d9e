"""The bound on memory: what goes beyond it fails, what stays below works, and it ends with its block."""

import resource

import pytest

from dalle_ppo.base import memory_limit
from dalle_ppo.base.memory_limit import memory_at_most

MB = 2**20
ON_LINUX = pytest.mark.skipif(not memory_limit._IN_USE.exists(), reason="only Linux limits a process")


@ON_LINUX
def test_only_what_goes_beyond_it_fails():
    with memory_at_most(256 * MB):
        assert len(bytearray(64 * MB)) == 64 * MB
        with pytest.raises(MemoryError):
            bytearray(2048 * MB)


def test_it_ends_with_its_block():
    before = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(ZeroDivisionError), memory_at_most(256 * MB):
        raise ZeroDivisionError
    assert resource.getrlimit(resource.RLIMIT_AS) == before
    assert len(bytearray(512 * MB)) == 512 * MB


@ON_LINUX
def test_a_lower_limit_of_the_user_stays():
    now, hard = resource.getrlimit(resource.RLIMIT_AS)
    own = int(memory_limit._IN_USE.read_text().split()[0]) * resource.getpagesize() + 128 * MB
    resource.setrlimit(resource.RLIMIT_AS, (own, hard))
    try:
        with memory_at_most(1024 * MB):
            assert resource.getrlimit(resource.RLIMIT_AS) == (own, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (now, hard))


def test_systems_without_that_file_go_on(monkeypatch, tmp_path):
    monkeypatch.setattr(memory_limit, "_IN_USE", tmp_path / "missing")
    with memory_at_most(MB):
        assert len(bytearray(64 * MB)) == 64 * MB
