"""The planted mistakes fit the code as it stands; planting them all takes minutes and is marked slow."""

import re
from pathlib import Path

import pytest
from scripts import load_script

ROOT = Path(__file__).parents[2]


SCRIPT = load_script(ROOT / "benchmarks" / "planted_mistakes.py")


@pytest.mark.parametrize("mistake", SCRIPT.PLANTED, ids=lambda mistake: mistake.what)
def test_each_mistake_has_its_place_and_its_test(mistake):
    source = (ROOT / "dalle_ppo" / mistake.file).read_text(encoding="utf-8")
    assert source.count(mistake.right) == 1
    file, _, test = mistake.tests.partition("::")
    assert f"def {test}" in (ROOT / "tests" / file).read_text(encoding="utf-8")


def test_the_written_table_is_of_these_mistakes():
    rows = re.findall(
        r"^\| (.+) \| \[`(\w+)`\]\(\.\./tests/(.+)\) \|$", SCRIPT.TABLE.read_text("utf-8"), flags=re.MULTILINE
    )
    assert [what for what, *_ in rows] == [mistake.what for mistake in SCRIPT.PLANTED]
    for _, test, file in rows:
        assert f"def {test}(" in (ROOT / "tests" / file).read_text(encoding="utf-8")
    assert SCRIPT.table([f"{file}::{test}" for _, test, file in rows]) == SCRIPT.TABLE.read_text("utf-8")


def test_a_test_that_fails_without_a_mistake_is_no_proof(tmp_path, monkeypatch):
    for name in ("dalle_ppo", "tests"):
        (tmp_path / name).mkdir()
    (tmp_path / "tests" / "test_a.py").write_text("def test_good(): pass\ndef test_bad(): assert 0\n")
    monkeypatch.setattr(SCRIPT, "ROOT", tmp_path)
    good, bad = (
        SCRIPT.Mistake("", "a.py", "1", "2", f"test_a.py::{name}") for name in ("test_good", "test_bad")
    )
    SCRIPT.check_unchanged([good])
    with pytest.raises(RuntimeError, match="without a mistake"):
        SCRIPT.check_unchanged([good, bad])


@pytest.mark.slow
@pytest.mark.parametrize("mistake", SCRIPT.PLANTED, ids=lambda mistake: mistake.what)
def test_each_mistake_is_seen(mistake):
    assert SCRIPT.catching_test(mistake)
