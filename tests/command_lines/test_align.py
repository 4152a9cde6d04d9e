"""A whole alignment in the built-in world: labels, reward models, training without any detector, report."""

import json

import pytest

from dalle_ppo import align
from dalle_ppo.preferences.store import find_store
from dalle_ppo.runs.metrics import read_metrics

TINY = {
    "rater": "simulated",
    "rounds": 2,
    "answers": 60,
    "num_images": 4,
    "iterations": 1,
    "min_accuracy": 0.0,
    "members": 2,
    "choose": "disagreement",
    "rollout.rollout_batch_size": 4,
    "update.minibatch_size": 4,
    "update.microbatch_size": 4,
    "checkpoint_every": 1,
    "evaluation.num_captions": 8,
    "evaluation.batch_size": 8,
    "device": "cpu",
}


def arguments(run_dir, **changes):
    settings = {"run_dir": run_dir} | TINY | changes
    return [text for name, value in settings.items() for text in (f"--{name}", str(value))]


@pytest.mark.slow
def test_two_rounds_in_the_built_in_world(tmp_path, cli):
    run = tmp_path / "run"
    outcome = cli(align.main, *arguments(run))
    assert outcome.code == 0, outcome.err
    assert "one replaces all other terms" in outcome.out and "rater and judge agree" in outcome.out
    rounds = [json.loads((run / "align" / f"round_00{n}" / "round.json").read_text()) for n in (0, 1)]
    assert [r["answers"] for r in rounds] == [60, 60] and 0 <= rounds[1]["old_model"] <= 1
    assert [answer.round for answer in find_store(run).answers()] == [0] * 60 + [1] * 60
    sets = [json.loads((run / "align" / f"round_00{n}" / "sets.json").read_text()) for n in (0, 1)]
    assert [sum(shown["chosen"] for shown in of_round) for of_round in sets] == [0, 45]
    assert len((run / "preferences" / "choices.jsonl").read_text().splitlines()) == 60 / 4
    rows = read_metrics(run / "metrics.jsonl")
    assert len(rows) == 2 and "unsafe_rate" not in rows[0]
    assert any("preference_spread" in name for name in rows[0])
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert "policy" in evaluation and "preference" in (run / "report.html").read_text()
    again = cli(align.main, *arguments(run))
    assert again.code == 0 and again.out.count("round ") == 2, "everything is finished"


def test_the_folder_may_stand_in_the_file_of_settings(tmp_path, cli):
    settings = tmp_path / "settings.yaml"
    settings.write_text(f"run_dir: {tmp_path / 'run'}\n")
    outcome = cli(align.main, "--config", str(settings), "--rounds", "0")
    assert outcome.code == 2 and "rounds is 0" in outcome.error
    settings.write_text("seed: 1\n")
    outcome = cli(align.main, "--config", str(settings), "--rounds", "0")
    assert outcome.code == 2 and "--run_dir is missing" in outcome.error


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_images": 1}, "--num_images is 1; a set has at least 2 pictures"),
        ({"by": "http://localhost:1"}, "--by and --model belong together"),
        ({"rounds": 0}, "rounds is 0; it must be at least 1"),
        ({"no.such": 1}, "no.such"),
        (
            {"by": "http://localhost:1", "model": "m", "max_cost": 1},
            "without prices nobody knows what a request costs",
        ),
    ],
)
def test_mistakes_cost_one_line(tmp_path, cli, changes, message):
    outcome = cli(align.main, *arguments(tmp_path / "run", **changes))
    assert outcome.code == 2 and message in outcome.error
    assert not (tmp_path / "run").exists()
