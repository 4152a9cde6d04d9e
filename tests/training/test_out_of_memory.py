"""A step that runs out of memory is done again with fewer images at a time, and gives the same result."""

import warnings
from pathlib import Path

import pytest
import torch
from tiny_trainer import TINY_CONFIG, changed, tiny_trainer

from dalle_ppo.config.own_weights import OWN_WEIGHTS
from dalle_ppo.models.dalle.family import DalleFamily
from dalle_ppo.rewards.combine import CombinedReward
from dalle_ppo.runs.checkpoints import latest_checkpoint, load_checkpoint
from dalle_ppo.runs.metrics import read_metrics
from dalle_ppo.training import update

SETTINGS = {"num_iterations": 2, "checkpoint_every": 2, "evaluation.num_captions": 2}
PLACES = {
    "drawing": (DalleFamily, "draw", lambda family, weights, prompts, keys, plan=None: len(keys)),
    "scoring": (DalleFamily, "remember", lambda family, policy, rows: len(rows)),
    "gradients": (update, "_critic_backward", lambda networks, rows, *rest: len(rows)),
    "reward": (CombinedReward, "__call__", lambda reward, images, *rest: len(images)),
}
"""Where memory may run out: owner, function, and the number of images of a call."""


def limited(monkeypatch, place: str, limit: int) -> list[int]:
    """Makes memory run out wherever more than `limit` images are worked on; returns the sizes tried."""
    owner, name, count = PLACES[place]
    original, tried = getattr(owner, name), []

    def call(*args, **kwargs):
        tried.append(count(*args, **kwargs))
        if tried[-1] > limit:
            raise torch.OutOfMemoryError("injected")
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, call)
    return tried


def run(run_dir: Path, **settings) -> tuple[list[dict], dict[str, torch.Tensor]]:
    names = {name.replace("__", "."): value for name, value in settings.items()}
    tiny_trainer(changed(TINY_CONFIG, SETTINGS | names), run_dir).run()
    records = read_metrics(run_dir / "metrics.jsonl")
    timed = ("seconds", "images_per_second", "memory")
    tensors = load_checkpoint(latest_checkpoint(run_dir)).tensors
    flat = {f"{group} {name}": value for group in tensors for name, value in tensors[group].items()}
    return [{k: v for k, v in record.items() if not k.startswith(timed)} for record in records], flat


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return run(tmp_path_factory.mktemp("alone"), rollout__samples_per_caption=2)


def test_pairs_are_not_split(tmp_path, monkeypatch):
    """Half of 6 would be 3, and the best and the worst image of a caption in different microbatches."""
    settings = {"objective": "online_dpo", "update__microbatch_size": 6, "rollout__samples_per_caption": 2}
    settings |= {"update__minibatch_size": 8} | {n.replace(".", "__"): v for n, v in OWN_WEIGHTS.items()}
    whole = run(tmp_path / "whole", **settings)
    original, tried = DalleFamily.score, []

    def limited_score(family, policy, rows, *args, **kwargs):
        tried.append(len(rows))
        if len(rows) > 4 and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("injected")
        return original(family, policy, rows, *args, **kwargs)

    monkeypatch.setattr(DalleFamily, "score", limited_score)
    with pytest.warns(UserWarning, match="computing gradients of 6 images .*going on with 2"):
        _, tensors = run(tmp_path / "halved", **settings)
    assert 2 in tried and not {1, 3, 5} & set(tried)
    for name, value in whole[1].items():
        torch.testing.assert_close(tensors[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("place", PLACES)
def test_the_result_is_the_same(place, expected, tmp_path, monkeypatch):
    tried = limited(monkeypatch, place, 3)
    with pytest.warns(UserWarning, match=r"out of memory while .* going on with"):
        metrics, tensors = run(tmp_path, rollout__samples_per_caption=2)
    assert max(tried) > 3 and tried[-1] <= 3
    assert len(metrics) == len(expected[0]) == 2
    for record, wanted in zip(metrics, expected[0], strict=True):
        known = {name: value for name, value in wanted.items() if value is not None}
        assert record.keys() == wanted.keys()
        assert {name: record[name] for name in known} == pytest.approx(known, rel=1e-5, abs=1e-5)
    for name, wanted in expected[1].items():
        assert torch.allclose(tensors[name], wanted, rtol=0, atol=1e-6), name


def test_the_anchor_is_halved_too_and_takes_half_a_sum_back(tmp_path, monkeypatch):
    """Memory runs out in the anchor's second microbatch, when the gradient holds its first one already."""
    anchored = {"anchor__coef": 0.7, "anchor__num_images": 12, "anchor__minibatch_size": 8}
    settings = anchored | {"update__microbatch_size": 4}
    metrics, tensors = run(tmp_path / "alone", **settings)
    original, tried = DalleFamily.score, []

    def score(family, policy, rows, **options):
        if torch.is_grad_enabled() and "extra" not in options:  # of the anchor
            tried.append(len(rows))
            if len(rows) > 2 and len(tried) == 8:  # at first the policy is the reference: no gradient
                raise torch.OutOfMemoryError("injected")
        return original(family, policy, rows, **options)

    monkeypatch.setattr(DalleFamily, "score", score)
    with pytest.warns(UserWarning, match=r"out of memory while computing gradients of 4 images .* with 2"):
        found, of_halves = run(tmp_path / "halved", **settings)
    assert tried[:8] == [4] * 8 and set(tried[8:]) == {2}
    for record, wanted in zip(found, metrics, strict=True):
        known = {name: value for name, value in wanted.items() if value is not None}
        assert {name: record[name] for name in known} == pytest.approx(known, rel=1e-5, abs=1e-5)
    for name, wanted in tensors.items():
        assert torch.allclose(of_halves[name], wanted, rtol=0, atol=1e-6), name


@pytest.mark.parametrize(
    "place, setting",
    [
        pytest.param("drawing", "rollout.memory_gb", marks=pytest.mark.slow),
        pytest.param("scoring", "update.microbatch_size", marks=pytest.mark.slow),
        ("gradients", "update.microbatch_size"),
        ("reward", "rollout.rollout_batch_size"),
    ],
)
def test_below_one_image_the_run_stops_with_a_checkpoint(place, setting, expected, tmp_path, monkeypatch):
    trainer = tiny_trainer(
        changed(TINY_CONFIG, SETTINGS | {"rollout.samples_per_caption": 2, "reward.bad_result": "skip"}),
        tmp_path,
    )
    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        iterate = type(trainer).iterate

        def from_the_second_on(self, writer):
            if self.progress.iteration == 1:
                limited(patch, place, 0)
            return iterate(self, writer)

        patch.setattr(type(trainer), "iterate", from_the_second_on)
        with pytest.raises(ValueError, match=rf"out of memory.*one image.*{setting}") as caught:
            trainer.run()
    assert "\n" not in str(caught.value)
    checkpoint = load_checkpoint(latest_checkpoint(tmp_path))
    assert checkpoint.iteration == 1 and len(read_metrics(tmp_path / "metrics.jsonl")) == 1
    resumed = tiny_trainer(changed(TINY_CONFIG, SETTINGS | {"rollout.samples_per_caption": 2}), tmp_path)
    resumed.load(checkpoint)
    resumed.run()
    for name, value in load_checkpoint(latest_checkpoint(tmp_path)).tensors["policy"].items():
        assert torch.equal(value, expected[1][f"policy {name}"]), name


def test_after_steps_were_taken_nothing_is_saved_as_if_it_came_before_them(tmp_path, monkeypatch):
    trainer = tiny_trainer(changed(TINY_CONFIG, SETTINGS | {"checkpoint_every": 1}), tmp_path)
    original, calls = update._critic_backward, []

    def fails_late(*args):
        calls.append(args)
        if len(calls) > 3:  # two minibatches an iteration: this is the second one of the second iteration
            raise torch.OutOfMemoryError("injected")
        return original(*args)

    monkeypatch.setattr(update, "_critic_backward", fails_late)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=r"out of memory.*no checkpoint was written"):
            trainer.run()
    checkpoint = load_checkpoint(latest_checkpoint(tmp_path))
    assert checkpoint.iteration == 1
    moved = trainer.actor.module.state_dict()
    assert any(not torch.equal(moved[name], value) for name, value in checkpoint.tensors["policy"].items())
