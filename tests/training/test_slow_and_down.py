"""A disk that is slow and a reward server that is down: what a run promises then, and keeps."""

import os
import time
import zlib
from types import SimpleNamespace

import pytest
from fake_service import service
from stopped_runs import assert_same, result, trainer_of
from tiny_runs import tiny_arguments

from dalle_ppo import train
from dalle_ppo.rewards import http_json
from dalle_ppo.runs.checkpoints import latest_checkpoint, load_checkpoint
from dalle_ppo.runs.metrics import read_metrics

BATCH = 16


def scores(content: dict) -> dict:
    """A score for each picture that depends on its pixels alone."""
    return {"scores": [zlib.crc32(image.encode()) % 1000 / 1000 for image in content["images"]]}


def asking(server, **options) -> dict:
    term = {"name": "remote", "url": server.url, "parallel": 1, "images_per_request": BATCH} | options
    return {"reward__terms": [term]}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict:
    run_dir = tmp_path_factory.mktemp("undisturbed")
    with service(lambda content, number: scores(content)) as server:
        trainer_of(run_dir, **asking(server)).run()
    return result(run_dir)


def test_a_slow_file_system_costs_time_and_nothing_else(tmp_path, monkeypatch):
    """Promise: every flush and rename may take long; the run is the same."""
    trainer_of(tmp_path / "fast").run()
    slowed = {"fsync": 0, "replace": 0}

    def slow(name: str, seconds: float) -> None:
        original = getattr(os, name)

        def call(*args, **kwargs):
            slowed[name] += 1
            time.sleep(seconds)
            return original(*args, **kwargs)

        monkeypatch.setattr(os, name, call)

    slow("fsync", 0.02)
    slow("replace", 0.02)
    trainer_of(tmp_path / "slow").run()
    assert slowed["fsync"] > 10 and slowed["replace"] > 1
    assert_same(result(tmp_path / "slow"), result(tmp_path / "fast"))


class Minute:
    """A clock that sleeping puts forward; the server is down from some request on, for some seconds."""

    def __init__(self, first: int, seconds: float):
        self.first, self.seconds, self.now, self.since = first, seconds, 0.0, None

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def answer(self, content: dict, number: int):
        if self.since is None and number >= self.first:
            self.since = self.now
        if self.since is not None and self.now < self.since + self.seconds:
            return 503, "restarting", {}
        return scores(content)


def test_a_reward_server_that_is_down_for_a_minute(undisturbed, tmp_path, monkeypatch):
    """Promise: 7 retries bridge a minute, and the run is the same."""
    minute = Minute(first=3, seconds=60)
    monkeypatch.setattr(http_json, "time", SimpleNamespace(sleep=minute.sleep))
    with service(minute.answer) as server:
        trainer_of(tmp_path, **asking(server, retries=7)).run()
    assert 60 <= minute.now < 70
    different = result(tmp_path)
    assert_same(different, {name: undisturbed[name] for name in ("metrics", "weights", "pictures", "board")})


def test_a_reward_server_that_is_down_for_ever(undisturbed, tmp_path, monkeypatch):
    """Promise: retries, then one line that names the server and a checkpoint; with it back, the same run."""
    gone = Minute(first=4, seconds=1e9)
    monkeypatch.setattr(http_json, "time", SimpleNamespace(sleep=gone.sleep))
    with service(gone.answer) as server:
        with pytest.raises(ValueError, match=r"remote.*asked 5 times: 503 restarting") as caught:
            trainer_of(tmp_path, **asking(server)).run()
        assert "\n" not in str(caught.value) and server.url in str(caught.value)
        assert gone.now == 0.5 + 1 + 2 + 4, "the default retries"
        saved = load_checkpoint(latest_checkpoint(tmp_path)).iteration
        assert saved == len(read_metrics(tmp_path / "metrics.jsonl")) > 0
        gone.seconds = 0
        trainer_of(tmp_path, resume=True, **asking(server)).run()
    assert_same(result(tmp_path), {name: undisturbed[name] for name in ("metrics", "weights", "pictures")})


@pytest.mark.slow
def test_the_command_ends_with_exit_code_2_and_goes_on(tmp_path, cli):
    down = [False]

    def answer(content, number):
        down[0] = down[0] or number == 5
        return (503, "restarting", {}) if down[0] else scores(content)

    with service(answer) as server:
        term = f"[{{name: remote, url: '{server.url}', retries: 1, parallel: 1}}]"
        settings = {"reward__terms": term, "evaluation__at_end": "false"}
        outcome = cli(train.main, *tiny_arguments(tmp_path / "run", **settings))
        assert outcome.code == 2 and "asked 2 times: 503 restarting" in outcome.error
        done = load_checkpoint(latest_checkpoint(tmp_path / "run")).iteration
        down[0] = False
        server.answer = lambda content, number: scores(content)
        assert cli(train.main, "--run_dir", tmp_path / "run", "--resume").code == 0
    assert 0 < done < 4 == len(read_metrics(tmp_path / "run" / "metrics.jsonl"))
