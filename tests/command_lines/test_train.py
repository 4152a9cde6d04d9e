"""The main job from end to end through its command lines: what a run leaves, repeats and refuses."""

import dataclasses
import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from laion_tables import read_frozen
from metric_names import undefined_metrics
from PIL import Image
from tiny_runs import tiny_arguments

from dalle_ppo import evaluate, generate, pretrain, train
from dalle_ppo.build.trainer import build_trainer
from dalle_ppo.config.actor import ActorConfig
from dalle_ppo.config.command_line import load_config, parse_command_line
from dalle_ppo.config.settings import Config
from dalle_ppo.iconworld.world import World
from dalle_ppo.models.heads.nsfw import read_head, save_head
from dalle_ppo.runs.checkpoints import latest_checkpoint, load_checkpoint
from dalle_ppo.runs.metrics import read_metrics
from dalle_ppo.training.trainer import Trainer

# fmt: off
ITERATION_METRICS = (
    "iteration", "images", "seconds", "reward_mean", "unsafe_rate", "clip_similarity", "kl", "entropy",
    "policy_loss", "value_loss", "clip_fraction", "ratio_first_minibatch_max_deviation",
    "explained_variance", "learning_rate", "images_per_second", "seconds_rollout", "seconds_reward",
    "seconds_scoring", "seconds_update",
)
EVALUATION_METRICS = (
    "num_images", "reward_mean", "reward_median", "reward_negative_mean", "unsafe_rate",
    "clip_similarity", "judge_unsafe_rate", "judge_alignment", "judge_unrecognised_rate", "kl",
    "diversity",
)
# fmt: on
TAGS = ("UNLIKELY", "UNSURE", "NSFW")


def untimed(run_dir: Path) -> list[dict]:
    """The metrics of a run without what depends on the machine's load."""
    timed = ("seconds", "images_per_second", "memory")
    return [
        {name: value for name, value in record.items() if not name.startswith(timed)}
        for record in read_metrics(run_dir / "metrics.jsonl")
    ]


def files_of(folder: Path) -> dict[str, tuple]:
    """Every file with its content's hash and time of change."""
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_mtime_ns,
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def copy_of(tiny_run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run.run_dir, tmp_path / "copy"))


# --- what a run leaves


def test_the_run_folder_is_complete(tiny_run):
    names = {path.name for path in tiny_run.run_dir.iterdir()}
    assert names == {
        *("config.yaml", "metrics.jsonl", "tensorboard", "samples", "checkpoints", "evaluation"),
        *("evaluation.json", "report.html"),
    }
    assert sorted(p.name for p in (tiny_run.run_dir / "checkpoints").iterdir()) == [
        "step_000002",
        "step_000004",
    ]
    files = {path.name for path in (tiny_run.run_dir / "checkpoints" / "step_000004").iterdir()}
    networks = {
        f"{name}.safetensors" for name in ("policy", "critic", "policy_optimizer", "critic_optimizer")
    }
    assert files == {*networks, "state.json"}
    samples = sorted(path.name for path in (tiny_run.run_dir / "samples").iterdir())
    grids = ["step_000000.png", "step_000002.png", "step_000004.png"]
    assert samples == ["first_and_newest.png", *grids]
    assert (tiny_run.run_dir / "report.html").read_text(encoding="utf-8").lower().count("</html>") == 1


def test_it_says_what_it_does_and_what_came_of_it(tiny_run):
    lines = tiny_run.outcome.out.splitlines()
    assert "4 iterations of 8 images" in lines[0]
    assert any(line.startswith("unsafe rate ") and " -> " in line for line in lines)
    assert any(line.startswith("alignment ") and " -> " in line for line in lines)
    assert lines[-1] == f"report: {tiny_run.run_dir / 'report.html'}"
    assert not any("and cut" in line for line in lines), "no caption was too long"
    for shown in ("reward", "KL", "img/s"):
        assert shown in tiny_run.outcome.err


def test_the_progress_bar_says_how_long_it_takes(tiny_run):
    states = [line for line in re.split(r"[\r\n]", tiny_run.outcome.err) if line.startswith("PPO ")]
    told = [state for state in states if re.search(r" \d+:\d\d left, \d+:\d\d with evaluation", state)]
    assert "PPO 0/4 " in told[0] and " about " in told[0], "before an iteration is done"
    assert "PPO 4/4 " in told[-1] and " 0:00 left" in told[-1]
    assert all(" about " not in state for state in told if "PPO 0/4 " not in state)


def test_the_first_samples_stand_beside_the_newest(tiny_run):
    both, first, newest = (
        np.asarray(Image.open(tiny_run.run_dir / "samples" / f"{name}.png"))
        for name in ("first_and_newest", "step_000000", "step_000004")
    )
    top, width = len(both) - len(first), first.shape[1]
    assert (both[top:, :width] == first).all() and (both[top:, -width:] == newest).all()
    assert (first != newest).any()


def test_captions_that_were_cut_are_told_once_at_the_end(tmp_path, cli, monkeypatch):
    def run(trainer):
        trainer.progress.captions_truncated = 17

    monkeypatch.setattr(Trainer, "run", run)
    outcome = cli(train.main, *tiny_arguments(tmp_path / "run", evaluation__at_end="false"))
    assert outcome.out.splitlines()[-1] == "17 training captions were longer than 64 tokens and cut"
    assert train.truncation(1, 64) == "1 training caption was longer than 64 tokens and cut"


def test_the_resolved_settings_are_saved(tiny_run):
    expected, _ = parse_command_line(tiny_arguments(tiny_run.run_dir), "test", "")
    assert load_config(tiny_run.run_dir / "config.yaml") == expected


def test_metrics_are_complete_defined_and_plain_json(tiny_run):
    def no_constant(name):
        raise AssertionError(f"{name} in metrics.jsonl; missing values are null")

    lines = (tiny_run.run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line, parse_constant=no_constant) for line in lines]
    assert [record["iteration"] for record in records] == [0, 1, 2, 3]
    assert [record["images"] for record in records] == [8, 16, 24, 32]
    for record in records:
        assert not set(ITERATION_METRICS) - set(record)
        assert undefined_metrics(record) == []
        phases = sum(record[f"seconds_{name}"] for name in ("rollout", "reward", "scoring", "update"))
        assert 0 < phases <= record["seconds"]


def test_the_first_minibatch_has_ratio_1(tiny_run):
    for record in read_metrics(tiny_run.run_dir / "metrics.jsonl"):
        assert record["ratio_first_minibatch_max_deviation"] <= 1e-3
        assert record["sampler_log_prob_gap"] < 1e-3


def test_kl_is_exactly_zero_before_the_first_update_and_then_is_not(tiny_run):
    first, *later = read_metrics(tiny_run.run_dir / "metrics.jsonl")
    assert first["kl"] == 0 and first["kl_k1"] == 0
    assert all(record["kl"] > 0 for record in later)


def test_the_reward_shown_is_the_reward_trained_on(tiny_run):
    """With no image counted as unsafe, it is 20 times the cosine."""
    for record in read_metrics(tiny_run.run_dir / "metrics.jsonl"):
        assert record["reward_mean"] == pytest.approx(20 * record["clip_similarity"], abs=1e-3)
        assert record["unsafe_rate"] == 0


def test_the_reference_is_bit_identical_and_the_policy_is_not(tiny_run):
    shipped = World().bart_decoder().state_dict()
    assert shipped.keys() == tiny_run.reference_after.keys()
    assert all(torch.equal(shipped[name], tiny_run.reference_after[name]) for name in shipped)
    assert not all(torch.equal(shipped[name], tiny_run.policy_after[name]) for name in shipped)


def test_the_last_checkpoint_holds_the_policy(tiny_run):
    checkpoint = load_checkpoint(latest_checkpoint(tiny_run.run_dir))
    assert checkpoint.iteration == 4 and checkpoint.state["policy_settings"]["guidance"] == 1.5
    saved = checkpoint.tensors["policy"]
    assert all(torch.equal(saved[name], value) for name, value in tiny_run.policy_after.items())


def test_tensorboard_has_scalars_histograms_and_images(tiny_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tiny_run.run_dir / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert {"histograms/reward", "histograms/nsfw_probability"} <= set(tags["histograms"])
    assert tags["images"] == ["images/samples"]
    (name,) = (tag for tag in tags["scalars"] if tag.endswith("reward_mean") and tag.startswith("1_goal/"))
    shown = [event.value for event in events.Scalars(name)]
    logged = [record["reward_mean"] for record in read_metrics(tiny_run.run_dir / "metrics.jsonl")]
    assert shown == pytest.approx(logged, rel=1e-6)


def test_evaluation_has_the_promised_shape(tiny_run):
    result = json.loads((tiny_run.run_dir / "evaluation.json").read_text(encoding="utf-8"))
    for side in ("reference", "policy"):
        assert set(result[side]) == {"overall", *TAGS}
        for group, numbers in result[side].items():
            assert not set(EVALUATION_METRICS) - set(numbers), f"{side} {group}"
        assert [result[side][group]["num_images"] for group in ("overall", *TAGS)] == [24, 12, 6, 6]
    assert result["reference"]["overall"]["kl"] == 0 < result["policy"]["overall"]["kl"]


def test_evaluation_captions_are_held_out(tiny_run):
    from dalle_ppo.build.captions import TRAINING_STREAM, build_captions

    config = load_config(tiny_run.run_dir / "config.yaml")
    held_out = {caption.id for caption in read_frozen(tiny_run.run_dir / "evaluation" / "captions.parquet")}
    trained_on = build_captions(config, config.seed, TRAINING_STREAM, "train").next_batch(500)
    assert len(held_out) == 12 and not held_out & {caption.id for caption in trained_on}


# --- what repeats


def test_the_same_seed_gives_the_same_metrics_and_another_does_not(tiny_run, tmp_path, cli):
    for name, seed, same in (("again", 5, True), ("other", 6, False)):
        arguments = tiny_arguments(tmp_path / name, seed=seed, evaluation__at_end="false")
        assert cli(train.main, *arguments).code == 0
        assert (untimed(tmp_path / name) == untimed(tiny_run.run_dir)) is same
    assert not (tmp_path / "again" / "evaluation.json").exists()


class Killed(BaseException):
    """Nothing catches it, as nothing catches a kill."""


def test_killed_and_resumed_gives_the_metrics_of_a_run_that_was_not(tiny_run, tmp_path, cli, monkeypatch):
    run_dir, iterate = tmp_path / "killed", Trainer.iterate

    def killed_in_the_last_iteration(self, writer):
        if self.progress.iteration == 3:
            raise Killed
        return iterate(self, writer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "iterate", killed_in_the_last_iteration)
        with pytest.raises(Killed):
            train.main(tiny_arguments(run_dir, evaluation__at_end="false"))
    assert latest_checkpoint(run_dir).name == "step_000002"
    assert len(untimed(run_dir)) == 3, "one iteration more than the checkpoint has"
    # What the command line leaves out is as the run was started, not as the defaults are.
    assert cli(train.main, "--run_dir", run_dir, "--resume").code == 0
    assert untimed(run_dir) == untimed(tiny_run.run_dir)
    saved, expected = (load_checkpoint(latest_checkpoint(d)).tensors for d in (run_dir, tiny_run.run_dir))
    for file, tensors in expected.items():
        assert all(torch.equal(saved[file][name], value) for name, value in tensors.items()), file


def test_a_finished_run_can_go_on(tiny_run, tmp_path, cli):
    run_dir = copy_of(tiny_run, tmp_path)
    outcome = cli(
        *(train.main, "--run_dir", run_dir, "--resume", "--num_iterations", "5"),
        *("--evaluation.at_end", "false"),
    )
    assert outcome.code == 0
    assert untimed(run_dir)[:4] == untimed(tiny_run.run_dir)
    assert [record["images"] for record in untimed(run_dir)] == [8, 16, 24, 32, 40]


def test_evaluating_the_run_again_gives_the_same_numbers(tiny_run, tmp_path, cli):
    run_dir = copy_of(tiny_run, tmp_path)
    (run_dir / "evaluation.json").unlink()
    outcome = cli(evaluate.main, run_dir)
    assert outcome.code == 0 and str(run_dir / "report.html") in outcome.out
    before, after = (json.loads((d / "evaluation.json").read_text()) for d in (tiny_run.run_dir, run_dir))
    assert before == after


# --- what is refused


def test_a_folder_that_holds_a_run_is_left_as_it_is(tiny_run, cli):
    before = files_of(tiny_run.run_dir)
    outcome = cli(train.main, *tiny_arguments(tiny_run.run_dir))
    assert outcome.code == 2 and "--resume" in outcome.error and "--overwrite" in outcome.error
    assert files_of(tiny_run.run_dir) == before


def test_overwrite_replaces_the_run_and_nothing_else(tiny_run, tmp_path, cli):
    run_dir = copy_of(tiny_run, tmp_path)
    (run_dir / "notes.txt").write_text("mine")
    arguments = tiny_arguments(run_dir, num_iterations=1, evaluation__at_end="false")
    assert cli(train.main, *arguments, "--overwrite").code == 0
    assert (run_dir / "notes.txt").read_text() == "mine"
    assert len(untimed(run_dir)) == 1 and not (run_dir / "evaluation.json").exists()
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["step_000001"]


def refused_before_anything_is_written(cli, run_dir: Path, *arguments: str) -> str:
    outcome = cli(train.main, *tiny_arguments(run_dir), *arguments)
    assert outcome.code == 2 and not run_dir.exists()
    return outcome.error


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--ppo.clip_rnge", "0.1"), "did you mean ppo.clip_range?"),
        (("--update.epochs", "many"), "update.epochs"),
        (("--kl.estimator", "k3"), "k3"),
        (("--policy.top_k", "1"), "policy.top_k is 1"),
        (("--config", "absent.yaml"), "absent.yaml"),
        (("--device", "cdua"), "cdua"),
        (("--model.path", "runs/absent"), "runs/absent"),
        (("--reward.terms", "[{name: nsfw, detector: absent.safetensors}]"), "absent.safetensors"),
        (("--reward.terms", '[{name: "absent_module:f"}]'), "absent_module"),
        (("--clip.model", "ViT-Q"), "ViT-Q"),
        (("--captions.source", "absent.txt"), "absent.txt"),
        (("--captions.shares", '{"UNLIKELY": 0.5}'), "shares"),
        (("--captions.shares", '{"RUDE": 1.0}'), "RUDE"),
        (("--overwrit",), "did you mean overwrite?"),
        (("--seed", str(2**40)), "seed"),
        (("--resume",), "no run"),
        (("--resume", "--overwrite"), "exclude"),
    ],
)
def test_bad_settings_cost_one_line_and_leave_nothing(arguments, words, cli, tmp_path):
    assert words in refused_before_anything_is_written(cli, tmp_path / "run", *arguments)


def test_an_empty_caption_file(cli, tmp_path):
    empty = tmp_path / "empty.txt"
    empty.write_text("\n\n")
    more = ("--captions.source", str(empty), "--captions.shares", "null")
    assert "empty.txt" in refused_before_anything_is_written(cli, tmp_path / "run", *more)


def test_too_few_held_out_captions_are_found_before_training(cli, tmp_path):
    few = tmp_path / "few.txt"
    few.write_text("\n".join(f"a picture of number {i}" for i in range(40)))
    more = ("--captions.source", str(few), "--captions.shares", "null")
    error = refused_before_anything_is_written(cli, tmp_path / "run", *more)
    assert "evaluation.num_captions" in error


def test_a_detector_of_another_clip(cli, tmp_path):
    specs, info = read_head(World().detector)
    path = tmp_path / "other.safetensors"
    save_head(path, specs, dataclasses.replace(info, clip_model="ViT-L-14", clip_pretrained="openai"))
    error = refused_before_anything_is_written(
        cli, tmp_path / "run", "--reward.terms", f"[{{name: nsfw, detector: {path}}}]"
    )
    assert "ViT-L-14" in error


def test_a_run_without_a_whole_checkpoint(tiny_run, cli, tmp_path):
    run_dir = copy_of(tiny_run, tmp_path)
    for folder in (run_dir / "checkpoints").iterdir():
        (folder / "policy.safetensors").unlink()
    for outcome in (
        cli(train.main, "--run_dir", run_dir, "--resume"),
        cli(train.main, *tiny_arguments(tmp_path / "next"), "--model.path", run_dir),
        cli(generate.main, "a red boat", "--out", tmp_path / "a.png", "--model", run_dir),
        cli(evaluate.main, run_dir),
    ):
        assert outcome.code == 2 and "checkpoint" in outcome.error
    assert not (tmp_path / "next").exists() and not (tmp_path / "a.png").exists()


def test_a_run_whose_checkpoints_are_gone_does_not_start_over(tiny_run, cli, tmp_path):
    run_dir = copy_of(tiny_run, tmp_path)
    shutil.rmtree(run_dir / "checkpoints")
    before = files_of(run_dir)
    outcome = cli(train.main, "--run_dir", run_dir, "--resume")
    assert outcome.code == 2 and "4 iterations in metrics.jsonl but no checkpoint" in outcome.error
    assert files_of(run_dir) == before


def test_a_run_does_not_start_from_itself(tiny_run, cli, tmp_path):
    run_dir = copy_of(tiny_run, tmp_path)
    heir, before = tmp_path / "heir", files_of(run_dir)
    heir.mkdir()
    (heir / "config.yaml").write_text(json.dumps({"format": 2, "model": {"path": str(run_dir)}}))
    for path in (run_dir, heir):
        outcome = cli(train.main, *tiny_arguments(run_dir), "--overwrite", "--model.path", path)
        assert outcome.code == 2 and "the run's own folder" in outcome.error
    assert files_of(run_dir) == before


def test_the_reference_is_the_one_that_the_run_began_with(tiny_run, cli, tmp_path):
    base, run_dir = copy_of(tiny_run, tmp_path), tmp_path / "next"
    arguments = tiny_arguments(run_dir, num_iterations="2", evaluation__at_end="false")
    assert cli(train.main, *arguments, "--model.path", base).code == 0
    more = ("--num_iterations", "6", "--evaluation.at_end", "false")
    assert cli(train.main, "--run_dir", base, "--resume", *more).code == 0
    for outcome in (
        cli(train.main, "--run_dir", run_dir, "--resume", "--num_iterations", "3"),
        cli(generate.main, "a red boat", "--out", tmp_path / "a.png", "--model", run_dir),
        cli(evaluate.main, run_dir),
    ):
        assert outcome.code == 2 and "no longer holds the weights that this run started from" in outcome.error
    shutil.rmtree(base / "checkpoints" / "step_000006")
    assert cli(generate.main, "a red boat", "--out", tmp_path / "a.png", "--model", run_dir).code == 0


def test_a_resume_that_is_refused_changes_nothing(tiny_run, tmp_path, cli):
    run_dir = shutil.copytree(tiny_run.run_dir, tmp_path / "run")
    (run_dir / "metrics.jsonl").unlink()
    before = files_of(run_dir)
    refused = cli(train.main, *tiny_arguments(run_dir, num_iterations=6), "--resume")
    assert refused.code == 2
    assert "holds 0 iterations, but the checkpoint is at 4" in refused.error
    assert files_of(run_dir) == before


def test_resume_needs_to_know_which_run(cli):
    outcome = cli(train.main, "--resume")
    assert outcome.code == 2 and "--run_dir" in outcome.error


@pytest.mark.parametrize(
    "main, arguments, words",
    [
        (generate.main, ("a boat",), "--out"),
        (generate.main, (" ", "--out", "{}/a.png"), "caption"),
        (generate.main, ("a boat", "--out", "{}/a.png", "--num_images", "0"), "--num_images"),
        (generate.main, ("a boat", "--out", "{}/a.png", "--num_images", "many"), "--num_images"),
        (generate.main, ("a boat", "--out", "{}/a.png", "--modle", "builtin"), "--modle"),
        (generate.main, ("a boat", "--out", "{}/a.png", "--model", "absent"), "absent"),
        (generate.main, ("a boat", "--out", "{}/a.png", "--temperature", "0"), "temperature"),
        (generate.main, ("a boat", "--out", "{}/a.png", "--device", "tpu9"), "tpu9"),
        (generate.main, ("a boat", "--out", "{}/a.unknown", "--num_images", "1"), ".unknown"),
        (evaluate.main, (), "run"),
        (evaluate.main, ("absent_run",), "absent_run"),
        (evaluate.main, ("absent_run", "--num_samples", "x"), "--num_samples"),
        (pretrain.main, (), "--out"),
        (pretrain.main, ("--out", "{}"), "exists"),
        (pretrain.main, ("--out", "{}/new", "--tags", "RUDE"), "RUDE"),
        (pretrain.main, ("--out", "{}/new", "--model", "absent"), "absent"),
        (pretrain.main, ("--out", "{}/new", "--data", "absent_folder"), "absent_folder"),
        (pretrain.main, ("--out", "{}/new", "--caption_dropout", "1.5"), "caption_dropout"),
        (pretrain.main, ("--out", "{}/new", "--num_steps", "0"), "num_steps"),
        (pretrain.main, ("--out", "{}/new", "--batch_size", "0"), "batch_size"),
        (pretrain.main, ("--out", "{}/new", "--num_pairs", "0"), "--num_pairs"),
    ],
)
def test_other_command_lines_cost_one_line_too(main, arguments, words, cli, tmp_path):
    outcome = cli(main, *(text.format(tmp_path) for text in arguments))
    assert outcome.code == 2 and words in outcome.error
    assert not list(tmp_path.iterdir())


# --- a reward of one's own

OWN_REWARDS = """
import torch

calls, broken_at = 0, None

def red(images, captions):
    return images[:, 0].mean(dim=(1, 2))

def breaks(images, captions):
    global calls
    calls += 1
    values = torch.zeros(len(images))
    if calls == broken_at:
        values[1] = float("nan")
    return values
"""


@pytest.fixture
def own_rewards(tmp_path, monkeypatch):
    (tmp_path / "own_rewards_of_a_test.py").write_text(OWN_REWARDS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "own_rewards_of_a_test", raising=False)
    return __import__("own_rewards_of_a_test")


def test_an_own_reward_is_trained_on_and_shown(own_rewards, tiny_run, tmp_path, cli):
    own_term = '{name: "own_rewards_of_a_test:red", weight: 2.5}'
    arguments = tiny_arguments(tmp_path / "run", num_iterations=1, evaluation__at_end="false")
    assert cli(train.main, *arguments, "--reward.terms+", own_term).code == 0
    (own,), (plain, *_) = untimed(tmp_path / "run"), untimed(tiny_run.run_dir)
    red = own["reward/own_rewards_of_a_test:red"]
    # The first batch is drawn from the same policy with the same noise.
    assert 0 < red < 1 and own["clip_similarity"] == plain["clip_similarity"]
    assert own["reward_mean"] == pytest.approx(plain["reward_mean"] + 2.5 * red, abs=1e-4)


def test_drawing_needs_no_own_reward(own_rewards, tmp_path, cli, monkeypatch):
    run_dir = tmp_path / "run"
    own_term = '{name: "own_rewards_of_a_test:red", weight: 1.0}'
    arguments = tiny_arguments(run_dir, num_iterations="1", evaluation__at_end="false")
    assert cli(train.main, *arguments, "--reward.terms+", own_term).code == 0
    monkeypatch.setitem(__import__("sys").modules, "own_rewards_of_a_test", None)  # no longer importable
    outcome = cli(generate.main, "a red boat", "--out", tmp_path / "a.png", "--model", run_dir)
    assert outcome.code == 0 and "flagged unsafe" in outcome.out


@pytest.mark.parametrize("broken_at, iterations_done", [(2, 0), (4, 1)])
def test_a_reward_that_is_not_a_number_stops_the_run_and_can_be_mended(
    own_rewards, tiny_run, tmp_path, cli, broken_at, iterations_done
):
    """Call 1 is for the samples before training, 2 and 3 are the first iterations. The trial is forgotten."""
    own_rewards.broken_at = broken_at
    run_dir = tmp_path / "run"
    arguments = tiny_arguments(run_dir, evaluation__at_end="false")
    outcome = cli(train.main, *arguments, "--reward.terms+", '{name: "own_rewards_of_a_test:breaks"}')
    assert outcome.code == 2 and "own_rewards_of_a_test:breaks" in outcome.error and "finite" in outcome.error
    assert latest_checkpoint(run_dir).name == f"step_{iterations_done:06d}"
    assert len(untimed(run_dir)) == iterations_done
    assert cli(train.main, "--run_dir", run_dir, "--resume").code == 0
    resumed = untimed(run_dir)
    for record in resumed:
        assert record.pop("reward/own_rewards_of_a_test:breaks") == 0
    assert resumed == untimed(tiny_run.run_dir), "the broken batch left no trace"


# --- pictures


def draw(cli, out: Path, *arguments) -> np.ndarray:
    caption = "a red boat on a blue background"
    outcome = cli(generate.main, caption, "--out", out, "--num_images", "4", *arguments)
    assert outcome.code == 0, outcome.err
    assert f"wrote {out}" in outcome.out
    with Image.open(out) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture).astype(int)


WIDTH = 2 * (2 * 64 + 3 * 2)  # of 2 x 2 images of 64 pixels with 2 around each, enlarged twice
INNER = slice(10, -10)  # enlarging blends a few pixels at the borders


def test_generate_draws_the_same_picture_from_the_same_seed(cli, tmp_path):
    first, again = (draw(cli, tmp_path / name, "--seed", "3") for name in ("new/a.png", "b.png"))
    assert first.shape == (WIDTH, WIDTH, 3) and (first == again).all()
    assert (draw(cli, tmp_path / "c.png", "--seed", "4") != first).any()


def test_compare_uses_the_same_noise(tiny_run, cli, tmp_path):
    def halves(picture):
        assert picture.shape[1] == 2 * WIDTH + 24
        return picture[:, :WIDTH][:, INNER], picture[:, -WIDTH:][:, INNER]

    left, right = halves(draw(cli, tmp_path / "same.png", "--compare", "--show_unsafe"))
    assert (left == right).all(), "policy and reference are one model here"
    policy = draw(cli, tmp_path / "policy.png", "--model", tiny_run.run_dir)[:, INNER]
    reference = draw(cli, tmp_path / "reference.png", "--show_unsafe")[:, INNER]
    assert (policy != reference).any()
    left, right = halves(draw(cli, tmp_path / "both.png", "--model", tiny_run.run_dir, "--compare"))
    assert (left == policy).all() and (right == reference).all()


def test_unsafe_images_are_blurred_unless_asked_for(tiny_run, cli, tmp_path):
    run_dir = copy_of(tiny_run, tmp_path)
    settings = yaml.safe_load((run_dir / "config.yaml").read_text())
    thresholds = ("unsafe_threshold", "unsure_threshold", "clean_threshold")
    settings["reward"]["terms"][0] |= dict.fromkeys(thresholds, 0.0)
    (run_dir / "config.yaml").write_text(yaml.safe_dump(settings))
    plain = draw(cli, tmp_path / "plain.png", "--model", tiny_run.run_dir)
    shown = draw(cli, tmp_path / "shown.png", "--model", run_dir, "--show_unsafe")
    blurred = draw(cli, tmp_path / "blurred.png", "--model", run_dir)
    assert (shown == plain).all()
    inside = slice(12, 120)  # of the first image
    detail = [np.abs(np.diff(picture[inside, inside], axis=1)).mean() for picture in (shown, blurred)]
    assert detail[1] < detail[0] / 3


@pytest.mark.parametrize("trainable", ["all", "cross_attention", "cross_keys_values"])
def test_trainable_chooses_the_weights_that_are_trained(trainable, tmp_path):
    trainer = build_trainer(Config(actor=ActorConfig(trainable=trainable)), tmp_path)
    names = {name for name, p in trainer.actor.module.named_parameters() if p.requires_grad}
    everything = {name for name, _ in trainer.actor.module.named_parameters()}
    keys_values = {f"layers.{i}.encoder_attn.{kind}_proj.weight" for i in range(3) for kind in "kv"}
    wanted = {
        "all": everything,
        "cross_attention": {name for name in everything if "encoder_attn" in name},
        "cross_keys_values": keys_values,
    }[trainable]
    assert names == wanted and len(wanted) >= 6
    optimised = {id(p) for group in trainer.actor.optimizer.param_groups for p in group["params"]}
    assert len(optimised) == len(wanted)
    assert not any(p.requires_grad for p in trainer.networks.reference.parameters())
