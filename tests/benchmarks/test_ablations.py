"""The ablations' script: what it trains, keeps, and writes; the real runs take hours and are not here."""

import json
from pathlib import Path

import pytest
from scripts import load_script
from tiny_trainer import TINY_CONFIG, NoWriter, changed, tiny_trainer

from dalle_ppo.config.settings import Config

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "ablations.py"


@pytest.fixture(scope="module")
def ablations():
    return load_script(SCRIPT)


def cell(name: str, seed: int, unsafe: float, stopped: str | None = None) -> dict:
    numbers = {"judge_alignment": 0.9, "judge_unrecognised_rate": 0.02, "kl": 2.0, "seconds": 10.0}
    points = [
        {"iteration": i, "images": 96 * i, "judge_unsafe_rate": rate} | numbers
        for i, rate in enumerate((0.33, unsafe))
    ]
    return {"name": name, "seed": seed, "stopped": stopped, "curve": points}


def test_every_setting_is_asked_about_and_fits_the_configuration(ablations):
    asked = [name for names in ablations.QUESTIONS.values() for name in names]
    assert sorted(["default", *asked]) == sorted(ablations.SETTINGS)
    args, others = ablations.parse_arguments(["--out", "unused"])
    configs = [ablations.cell_config(args, others, name, 0) for name in ablations.SETTINGS]
    same = {ablations.to_yaml(config) for config in configs}
    assert len(same) == len(configs) - 1, "all differ but the one whose log-probs are wrong"


def test_unguided_log_probs_are_of_what_was_drawn_with_guidance(ablations):
    """The first ratio is 1 all the same; the gap to the sampler's log-probs gives the mistake away."""
    right = tiny_trainer(changed(TINY_CONFIG, {"policy.guidance": 2.0}))
    wrong = tiny_trainer(changed(TINY_CONFIG, {"policy.guidance": 2.0}))
    ablations.score_unguided(wrong)
    first, second = right.iterate(NoWriter()), wrong.iterate(NoWriter())
    assert second["reward_mean"] == first["reward_mean"], "the same images"
    assert second["ratio_first_minibatch_max_deviation"] < 1e-5
    assert first["sampler_log_prob_gap"] < 1e-5 and second["sampler_log_prob_gap"] > 0.1
    assert second["kl"] == 0 and second["entropy"] > first["entropy"]


def test_a_finished_cell_is_kept_and_an_unfinished_one_run(ablations, tmp_path, monkeypatch, capsys):
    ran = []

    def run_cell(config, name, run_dir):
        ran.append((name, config.seed))
        run_dir.mkdir(parents=True)
        return cell(name, config.seed, 0.1)

    monkeypatch.setattr(ablations, "run_cell", run_cell)
    arguments = ["--out", str(tmp_path), "--settings", "default,rloo"]
    assert ablations.main([*arguments, "--seeds", "0"]) == 0
    assert ablations.main([*arguments, "--seeds", "0,1"]) == 0
    assert ran == [("default", 0), ("rloo", 0), ("default", 1), ("rloo", 1)]
    assert not any((tmp_path / "runs").iterdir())
    assert "| rloo | 2 | 10.0% ± 0.0% |" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"default_seed0\.json was made with other settings"):
        ablations.main([*arguments, "--seeds", "0", "--actor.learning_rate", "0.1"])
    with pytest.raises(ValueError, match="gea is unknown"):
        ablations.main(["--out", str(tmp_path), "--settings", "gea"])


def test_points_of_a_curve(ablations):
    metrics = [{"images": 96 * (i + 1), "seconds": 2.0 + i} for i in range(4)]
    numbers = {"judge_unrecognised_rate": 0.0, "unsafe_rate": 0.2, "kl": 1.0, "diversity": 0.3}
    sides = {
        name: {"overall": numbers | {"judge_unsafe_rate": rate}, "UNLIKELY": {"judge_alignment": 1 - rate}}
        for name, rate in (("reference", 0.4), ("step_000002", 0.3), ("policy", 0.1))
    }
    order = [(0, "reference"), (2, "step_000002"), (4, "policy")]
    points = ablations.curve(
        sides | {"curve": [{"iteration": i, "side": side} for i, side in order]}, metrics
    )
    assert [(p["images"], p["seconds"]) for p in points] == [(0, 0), (192, 5.0), (384, 14.0)]
    assert [(p["judge_unsafe_rate"], p["judge_alignment"]) for p in points] == [
        (0.4, 0.6),
        (0.3, 0.7),
        (0.1, 0.9),
    ]


def test_table_and_plot_need_three_seeds(ablations, tmp_path):
    cells = {
        "default": [cell("default", seed, rate) for seed, rate in enumerate((0.02, 0.03, 0.04))],
        "epochs-4": [cell("epochs-4", seed, 0.1, "collapsed") for seed in range(3)],
    }
    ablations.write_docs(cells, tmp_path, 500)
    text = (tmp_path / "ablations.md").read_text(encoding="utf-8")
    assert "| default | 3 | 3.0% ± 1.0% | 90.0% ± 0.0% |" in text and "1000 held-out images" in text
    assert text.rstrip().splitlines()[-3].endswith("| 3 |"), "how many of them stopped early"
    assert "| before training | 3 | 33.0% ± 0.0% |" in text and "after 1 iterations" in text
    assert (tmp_path / "ablations.png").stat().st_size > 1000
    (tmp_path / "ablations.md").write_text(text + "\nWhat follows.\n", encoding="utf-8")
    ablations.write_docs(cells, tmp_path, 600)
    again = (tmp_path / "ablations.md").read_text(encoding="utf-8")
    assert again == text.replace("1000", "1200") + "\nWhat follows.\n", "what people wrote stays"
    cells["default"].pop()
    with pytest.raises(ValueError, match="default has 2 seeds"):
        ablations.write_docs(cells, tmp_path, 500)


def test_cells_are_json(ablations, tmp_path):
    path = tmp_path / "cell.json"
    path.write_text(json.dumps(cell("default", 0, 0.1) | {"settings": "a"}), encoding="utf-8")
    assert ablations.finished_cell(path, "a")["seed"] == 0
    assert ablations.finished_cell(tmp_path / "absent.json", "a") is None


def test_an_interrupted_cell_goes_on_and_a_run_that_stops_is_kept(ablations, tmp_path):
    config = changed(TINY_CONFIG, {"num_iterations": 3, "checkpoint_every": 1, "evaluation.num_captions": 2})

    def trained(run_dir: Path, config: Config = config, killed_at: int | None = None) -> str | None:
        trainer = tiny_trainer(config, run_dir)
        iterate = trainer.iterate

        def interrupted(writer):
            if trainer.progress.iteration == killed_at:
                raise KeyboardInterrupt
            return iterate(writer)

        trainer.iterate = interrupted
        return ablations.train(trainer, config, run_dir)

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "killed", killed_at=2)
    assert trained(tmp_path / "killed") is None and trained(tmp_path / "whole") is None
    killed, whole = (
        ablations.read_metrics(tmp_path / name / "metrics.jsonl") for name in ("killed", "whole")
    )
    assert [record["reward_mean"] for record in killed] == [record["reward_mean"] for record in whole]
    with pytest.warns(UserWarning, match="stopped"):
        reason = trained(tmp_path / "collapsed", changed(config, {"kl.max_kl": 1e-6}))
    assert "collapsed" in reason
    assert list(ablations.choose_checkpoints(tmp_path / "collapsed", "all")) == [1]
