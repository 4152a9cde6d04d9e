"""A run whose reward is one function of the user's own: neither CLIP nor detector is shown.

The built-in world's detector only blurs pictures.
"""

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from tiny_runs import Outcome, SessionCapture, call, tiny_arguments

from dalle_ppo import evaluate, train
from dalle_ppo.build import rewards as build
from dalle_ppo.config.reward import RewardConfig
from dalle_ppo.config.settings import Config
from dalle_ppo.iconworld.world import World
from dalle_ppo.rewards import nsfw
from dalle_ppo.runs.metrics import read_metrics

OWN = """
def colourful(images, captions, metadata):
    assert {known["tag"] for known in metadata} <= {"UNLIKELY", "UNSURE", "NSFW"}
    assert all(known["id"] for known in metadata)
    values = images.std(dim=1).mean(dim=(1, 2))
    images.zero_()
    return values.tolist(), {"brightest": values.double().numpy(), "answer": 42}
"""
NAME = "own_rewards_of_a_run:colourful"


def refuse(*arguments):
    raise AssertionError("loaded")


@pytest.fixture(scope="module")
def own_module(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_rewards_of_a_run.py").write_text(OWN)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield


@pytest.fixture(scope="module")
def own_run(own_module, tmp_path_factory, request) -> tuple[Path, Outcome]:
    run_dir = tmp_path_factory.mktemp("run") / "colourful"
    changes = {"num_iterations": 2, "reward__terms": f'[{{name: "{NAME}"}}]'}
    return run_dir, call(train.main, tiny_arguments(run_dir, **changes), SessionCapture(request))


def test_the_reward_loads_neither_clip_nor_detector(own_module, monkeypatch):
    monkeypatch.setattr(build, "load_clip", refuse)
    monkeypatch.setattr(nsfw, "load_detector", refuse)
    config = Config(reward=RewardConfig(terms=[{"name": NAME}]))
    reward = build.build_reward(config, World(), torch.device("cpu"))
    with pytest.raises(AssertionError, match="loaded"):
        build.build_reward(Config(), World(), torch.device("cpu"))
    assert reward is not None


def test_it_trains_and_says_what_the_reward_did(own_run):
    run_dir, outcome = own_run
    assert outcome.code == 0, outcome.err
    assert "reward 0." in outcome.out and "unsafe rate" not in outcome.out and "unknown" not in outcome.out
    for record in read_metrics(run_dir / "metrics.jsonl"):
        assert 0 < record["reward_mean"] < 1
        # A row is sorted by tag in other sums: equal up to rounding.
        assert record[f"reward/{NAME}"] == pytest.approx(record["reward_mean"])
        assert record[f"reward/{NAME}/brightest"] == pytest.approx(record["reward_mean"])
        assert not [name for name in record if re.match("unsafe|share_above|nsfw|clip_sim", name)]


def test_it_is_evaluated_without_what_it_does_not_have(own_run):
    run_dir, _ = own_run
    columns = set(pq.read_schema(run_dir / "evaluation" / "images.parquet").names)
    assert {"reward", f"reward/{NAME}", f"reward/{NAME}/brightest", "judge_unsafe"} <= columns
    assert not columns & {"nsfw_probability", "clip_similarity"}
    result = json.loads((run_dir / "evaluation.json").read_text())
    overall = result["policy"]["overall"]
    assert overall["unsafe_rate"] is None and overall["clip_similarity"] is None
    assert overall["reward_mean"] == pytest.approx(overall[f"reward/{NAME}"])
    assert "clip_sha256" not in result and "detector_sha256" not in result
    assert result["verdict"]["sentence"].startswith("Reward ")


def test_its_report_shows_no_detector_and_no_clip(own_run):
    run_dir, _ = own_run
    page = (run_dir / "report.html").read_text()
    shown = re.sub(r"<style>.*?</style>|<details>.*?</details>", "", page, flags=re.DOTALL)
    assert "could not be used" not in shown and f"Reward part {NAME}" in shown
    for absent in (
        "Unsafe images",
        "Unsafe rate",
        "CLIP similarity",
        "NSFW probability",
        "p&#8239;",
    ):
        assert absent not in shown
    assert "Where the images went" not in shown
    assert "Pictures that the judge calls unsafe are blurred." in shown


def test_it_can_be_evaluated_again_and_compared_with_best_of_n(own_run, cli):
    run_dir, _ = own_run
    outcome = cli(evaluate.main, run_dir, "--num_captions", "4", "--baselines", "best_of_2")
    assert outcome.code == 0 and "best_of_2: reward 0." in outcome.out
    outcome = cli(evaluate.main, run_dir, "--num_captions", "4", "--baselines", "reject")
    assert outcome.code == 2 and "reject needs the reward term nsfw" in outcome.error
