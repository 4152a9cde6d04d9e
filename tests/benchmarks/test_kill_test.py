"""The benchmark that kills runs finds what a kill has changed, and who does not end by himself."""

import importlib
import os
import signal
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def scripts():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        names = ("kill_test", "killing", "kill_labels", "kill_align")
        yield tuple(importlib.import_module(name) for name in names)


def test_differences_are_named(scripts):
    _, killing, *_ = scripts
    alone = {"board 1_goal/kl": [(0, 1.0), (1, 2.0)], "metrics": [{"kl": 1.0}]}
    assert killing.differences(alone, dict(alone)) == []
    twice = alone | {"board 1_goal/kl": [(0, 1.0), (0, 1.0), (1, 2.0)]}
    assert [line.split(":")[0] for line in killing.differences(alone, twice)] == ["board 1_goal/kl"]
    missing = {name: value for name, value in alone.items() if name != "metrics"}
    assert [line.split(":")[0] for line in killing.differences(alone, missing)] == ["metrics"]


def test_phases_name_functions_that_exist(scripts):
    kill_test, killing, kill_labels, kill_align = scripts
    for place in (*kill_test.PHASES.values(), *kill_labels.PHASES.values(), *kill_align.PHASES.values()):
        owner, name = killing.find(place)
        assert callable(getattr(owner, name))


def child(seconds: float, reports: bytes = b"") -> tuple[int, int]:
    reader, writer = os.pipe()
    process = os.fork()
    if not process:
        os.write(writer, reports)
        time.sleep(seconds)
        os._exit(0)
    os.close(writer)
    return process, reader


@pytest.mark.skipif(os.name == "nt", reason="forks")
def test_a_kill_lands_in_its_phase_and_on_its_victim(scripts):
    _, killing, *_ = scripts
    first, reader = child(0.3, b"+rollout\n-rollout\n+update\n")
    second, other = child(60)
    ended = killing.follow([first, second], reader, killing.Kill("update", 1, 0.5, victim=1), {"update": 0.1})
    os.close(other)
    assert (ended.code, ended.killed) == (-signal.SIGKILL, "update") and 0 < ended.alone < 5
    assert [(mark, phase) for _, mark, phase in ended.events][-1] == ("+", "update")


@pytest.mark.skipif(os.name == "nt", reason="forks")
def test_a_process_that_does_not_end_by_itself_is_a_fault(scripts):
    _, killing, *_ = scripts
    process, reader = child(60)
    os.close(reader)
    with pytest.raises(RuntimeError, match=r"1 processes had not ended after 0.1 seconds"):
        killing.wait_for([process], 0.1)


def test_what_may_be_asked_again_and_torn_is_bounded(scripts, tmp_path):
    _, _, kill_labels, _ = scripts
    subject = kill_labels.Labelling(tmp_path)
    store = tmp_path / "run" / "preferences"
    store.mkdir(parents=True)
    (store / "answers.jsonl").write_text('{"set_id": "a", "id": 1, "time": 2}\n{"set_i\n')
    (store / "images.jsonl").write_text("")
    subject.endpoint.requests[:] = [{}] * (kill_labels.SETS * kill_labels.ORDERS + 1)
    found = [subject.contents(tmp_path / "run", kills) for kills in (0, 1)]
    subject.endpoint.__exit__()
    assert found[1]["answers"] == [{"set_id": "a"}]
    words = ("torn rows beyond one for each kill", "asked again beyond once for each kill")
    assert [[contents[word] for word in words] for contents in found] == [[1, 1], [0, 0]]


SLOW = [
    pytest.param(name, marks=pytest.mark.slow) for name in ("lora", "two processes", "labelling", "aligning")
]


@pytest.mark.skipif(os.name == "nt", reason="forks")
@pytest.mark.parametrize("variant", ["ppo", *SLOW])
def test_five_kills(scripts, variant, tmp_path):
    kill_test, *_ = scripts
    kill_test.warm_up()
    done, faults, landed = kill_test.kill_and_compare(5, 7, tmp_path, [variant])
    assert done == 5 == landed.total() and faults == []
