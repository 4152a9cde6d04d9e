"""The bench's script: what it trains, which rate it takes, and its tables, by hand; real runs take hours."""

import json
import math
from pathlib import Path

import pytest
from scripts import load_script

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "bench.py"


@pytest.fixture(scope="module")
def bench():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPT.parent)
        yield load_script(SCRIPT)


@pytest.fixture(scope="module")
def arguments(bench, tmp_path_factory):
    return bench.parse_arguments(["--out", str(tmp_path_factory.mktemp("bench")), "--seeds", "0,1"])


def point(images, seconds, reward, diversity=0.2):
    numbers = {"reward_mean": reward, "judge_unsafe_rate": 0.5, "judge_alignment": 0.9, "kl": reward / 2}
    return {"images": images, "seconds": seconds, "suite": 0.6, "diversity": diversity} | numbers


def kept(*rewards, seconds=100.0, diversity=0.2):
    """A cell whose curve has these rewards after 0, 1000, 2000, ... images and 0, `seconds`, ... seconds."""
    curve = [point(1000 * i, seconds * i, r, diversity) for i, r in enumerate(rewards)]
    return {"curve": curve, "best_of_4": None}


def test_all_cells_have_settings_that_fit_and_only_the_final_ones_a_suite(bench, arguments):
    args, others = arguments
    search = bench.cell_config(args, others, "safety", "ppo", 1e-3, bench.SEARCH_SEED)
    assert search.evaluation.suite is None
    for i, objective in enumerate(bench.OBJECTIVES):
        task = ("safety", "jpeg")[i % 2]  # each takes a while
        final = bench.cell_config(args, others, task, objective, 1e-2, 0)
        assert final.evaluation.suite == "iconworld" and final.actor.schedule == "constant"
        assert final.objective == objective and final.actor.learning_rate == 1e-2
        names = [term["name"] for term in final.reward.terms]
        assert names == (["nsfw", "clip_similarity"] if task == "safety" else ["jpeg_size"])


def test_numbers_are_read_off_the_curve(bench):
    curve = kept(0.0, 4.0, 5.0)["curve"]
    assert bench.at(curve, "images", 1500, "reward_mean") == pytest.approx(4.5)
    assert bench.at(curve, "seconds", 25, "reward_mean") == pytest.approx(1.0)
    assert math.isnan(bench.at(kept(0.0, diversity=None)["curve"], "images", 0, "diversity"))


def test_objectives_are_compared_where_all_have_cost_as_much(bench):
    slow = [kept(0.0, 1.0, 3.0, seconds=200.0), kept(0.0, 3.0, 5.0, seconds=200.0)]
    fast = [kept(0.0, 2.0), kept(0.0, 6.0)]
    fast[0]["best_of_4"] = point(0, 0.0, 9.0)
    cells = {"ppo": fast, "dpok": slow}
    images, seconds = bench.table(cells, "images"), bench.table(cells, "seconds")
    assert images.startswith("| after 1000 images") and seconds.startswith("| after 100 seconds")
    # Means and standard deviations of 2 and 6; of 1 and 3 at 1000 images, of 0.5 and 1.5 after 100 s.
    assert "| `ppo` | 4.00 ± 2.83 |" in images and "| `ppo` | 4.00 ± 2.83 |" in seconds
    assert "| `dpok` | 2.00 ± 1.41 |" in images and "| `dpok` | 1.00 ± 0.71 |" in seconds
    assert "| its best of 4 | 9.00 |" in images and "| reference | 0.00 ± 0.00 |" in images
    assert bench.costs(cells, {"ppo": 0.01, "dpok": 0.003}).count("| 10.0 | 60.0% |") == 1


def test_where_all_have_collapsed_they_are_compared_where_the_first_did(bench):
    cells = {
        "ppo": [kept(0.0, 2.0, 4.0) | {"collapsed": "entropy"}],
        "dpok": [kept(0.0, 1.0) | {"collapsed": "KL"}],
    }
    table = bench.table(cells, "images")
    assert table.startswith("| after 1000 images") and "| `ppo`, 1 of 1 collapsed | 2.00 |" in table
    cells["ppo"][0]["collapsed"] = ""
    assert bench.table(cells, "images").startswith("| after 2000 images")


def test_the_rate_is_the_best_by_reward_and_finished_cells_are_kept(bench, arguments, monkeypatch):
    args, others = arguments
    ran = []

    def run_cell(config, run_dir, seconds, points, best_of):
        run_dir.mkdir(parents=True)
        ran.append((config.seed, seconds, points, best_of))
        return kept(0.0, {1e-3: 1.0, 3e-3: 7.0, 1e-2: 2.0}[config.actor.learning_rate])

    monkeypatch.setattr(bench, "run_cell", run_cell)
    assert bench.best_rate(args, others, "safety", "ppo") == 3e-3
    assert bench.best_rate(args, others, "safety", "ppo") == 3e-3
    assert ran == [(100, 60.0, 1, False)] * 3
    bench.cell(args, others, ("safety", "ppo", 3e-3, 0))
    bench.cell(args, others, ("safety", "ppo", 3e-3, 1))
    assert ran[3:] == [(0, 150.0, 4, True), (1, 150.0, 4, False)]
    assert len(list((args.out / "cells").iterdir())) == 5
    file = args.out / "cells" / "safety_ppo_0.003_seed1_150s.json"
    assert json.loads(file.read_text())["curve"][1]["reward_mean"] == 7.0
    assert not any((args.out / "runs").iterdir())
