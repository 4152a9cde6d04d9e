"""A few seconds of `benchmarks/fuzz.py`, and that it notices what it looks for."""

from pathlib import Path

import pytest
from scripts import load_script

fuzz = load_script(Path(__file__).parents[2] / "benchmarks" / "fuzz.py")


@pytest.fixture(scope="module")
def targets():
    return fuzz.make_targets()


@pytest.mark.parametrize("name", fuzz.NAMES)
def test_readers_accept_or_refuse_whatever_comes(name, targets):
    fuzz.fuzz(targets[name], 6 if name in ("config", "keras", "h5") else 12, 0)


@pytest.mark.parametrize(
    "name, place",
    [
        ("config", "dalle_ppo.config.command_line.parse_command_line"),
        ("checkpoint", "dalle_ppo.runs.checkpoints.check_format"),
        ("checkpoint", "dalle_ppo.runs.checkpoints.read_tensor_file"),
        ("gzip", "dalle_ppo.captions.open_shard._read_text"),
    ],
)
def test_files_get_past_the_first_check(name, place, targets, monkeypatch):
    """What stands behind the format's number, the hash and the decompression is tried too."""
    reached = []

    def stop(*given):
        reached.append(given)
        raise ValueError("far enough")

    monkeypatch.setattr(place, stop)
    fuzz.fuzz(targets[name], 60, 0)
    assert len(reached) >= 12


@pytest.mark.slow
@pytest.mark.parametrize("name", fuzz.NAMES)
def test_readers_accept_or_refuse_a_thousand_files(name, targets):
    fuzz.fuzz(targets[name], 1000, 1)


def fails(path: Path) -> None:
    raise KeyError(path.name)


def says_much(path: Path) -> None:
    raise ValueError("one\ntwo")


def writes_outside(path: Path) -> None:
    (path.parents[1] / "more").write_text("x")


@pytest.mark.parametrize(
    "read, error", [(fails, KeyError), (says_much, AssertionError), (writes_outside, AssertionError)]
)
def test_the_check_can_fail(read, error):
    with pytest.raises(error):
        fuzz.check(fuzz.Target("a.txt", None, read), b"x")


def test_slow_readers_are_noticed(monkeypatch):
    monkeypatch.setattr(fuzz, "SECONDS", 0.0)
    with pytest.raises(AssertionError, match="slow"):
        fuzz.check(fuzz.Target("a.txt", None, lambda path: None), b"x")
