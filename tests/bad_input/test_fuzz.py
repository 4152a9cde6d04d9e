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
