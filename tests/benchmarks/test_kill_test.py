"""The benchmark that kills runs finds what a kill has changed."""

from pathlib import Path

import pytest
from scripts import load_script

ROOT = Path(__file__).resolve().parents[2]
kill_test = load_script(ROOT / "benchmarks" / "kill_test.py")


def test_differences_are_named():
    alone = {"board 1_goal/kl": [(0, 1.0), (1, 2.0)], "metrics": [{"kl": 1.0}]}
    assert kill_test.differences(alone, dict(alone)) == []
    twice = alone | {"board 1_goal/kl": [(0, 1.0), (0, 1.0), (1, 2.0)]}
    assert [line.split(":")[0] for line in kill_test.differences(alone, twice)] == ["board 1_goal/kl"]
    missing = {name: value for name, value in alone.items() if name != "metrics"}
    assert [line.split(":")[0] for line in kill_test.differences(alone, missing)] == ["metrics"]


def test_phases_name_functions_that_exist():
    import importlib

    for place in kill_test.PHASES.values():
        module, _, name = place.partition(":")
        assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.slow
def test_five_kills(tmp_path):
    kill_test.warm_up()
    done, faults, landed = kill_test.kill_and_compare(5, 7, tmp_path, ["ppo"])
    assert done == 5 == landed.total() and faults == []
