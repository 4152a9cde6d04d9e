"""What goes wrong inside the loop is seen: a step is left out or the run stops, as the settings say."""

import math
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_trainer import TINY_CONFIG, TinyTokenizer, changed, tiny_trainer

from dalle_ppo.models.dalle.tokenizer import TextTokens
from dalle_ppo.rewards.base import Term
from dalle_ppo.rewards.combine import CombinedReward
from dalle_ppo.runs.checkpoints import latest_checkpoint, load_checkpoint
from dalle_ppo.runs.metrics import read_metrics
from dalle_ppo.training.trainer import Trainer


def trainer_of(run_dir: Path, **settings) -> Trainer:
    """A tiny trainer of 4 iterations, without what takes time; `settings` use `__` for the dot."""
    few = {"num_iterations": 4, "checkpoint_every": 2, "evaluation.num_captions": 2}
    settings = {name.replace("__", "."): value for name, value in settings.items()}
    return tiny_trainer(changed(TINY_CONFIG, few | settings), run_dir)


def stopped(trainer: Trainer) -> str:
    """The one line of a run that stops."""
    with pytest.raises(ValueError) as caught:
        trainer.run()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def untimed(run_dir: Path) -> list[dict]:
    timed = ("seconds", "images_per_second", "memory")
    records = read_metrics(run_dir / "metrics.jsonl")
    return [{k: v for k, v in record.items() if not k.startswith(timed)} for record in records]


def resumed(run_dir: Path, **settings) -> Trainer:
    trainer = trainer_of(run_dir, **settings)
    trainer.load(load_checkpoint(latest_checkpoint(run_dir)))
    return trainer


def flat(trainer: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.actor.module.parameters()])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> list[dict]:
    """Metrics of a run that nothing happens to."""
    run_dir = tmp_path_factory.mktemp("undisturbed")
    trainer_of(run_dir).run()
    return untimed(run_dir)


# --- a policy that has collapsed


@pytest.mark.parametrize(
    "bound, value, iteration, words",
    [
        ("kl__max_kl", 1e-3, 1, "above kl.max_kl = 0.001"),  # it is 0 before the first update
        ("actor__min_entropy", 12.0, 0, "below actor.min_entropy = 12"),
    ],
)
def test_a_policy_past_a_bound_stops_the_run_with_a_checkpoint(
    bound, value, iteration, words, tmp_path, undisturbed
):
    message = stopped(trainer_of(tmp_path, **{bound: value}))
    assert words in message and message.startswith(f"iteration {iteration}: the policy has collapsed")
    assert latest_checkpoint(tmp_path).name == f"step_{iteration:06d}"
    assert len(untimed(tmp_path)) == iteration
    resumed(tmp_path, **{bound: None}).run()
    assert untimed(tmp_path) == undisturbed, "the batch that was looked at left no trace"


def test_what_the_last_update_did_is_looked_at_too(tmp_path):
    message = stopped(trainer_of(tmp_path, num_iterations=1, kl__max_kl=1e-3))
    assert message.startswith("iteration 1: the policy has collapsed") and "kl.max_kl = 0.001" in message
    newest = latest_checkpoint(tmp_path)
    assert f"remove checkpoints/{newest.name} and --resume from the one before" in message
    assert len(untimed(tmp_path)) == 1 and (tmp_path / "samples" / "step_000001.png").is_file()


def test_a_policy_that_collapses_for_real_is_caught_by_the_default_bounds(tmp_path):
    """A large entropy penalty and a KL that hardly holds against it make every token certain."""
    trainer = trainer_of(
        tmp_path,
        num_iterations=40,
        actor__min_entropy=1.0,
        actor__entropy_coef=-20.0,
        actor__learning_rate=0.05,
        kl__kl_coef=20.01,
    )
    assert "its entropy is" in stopped(trainer)
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["entropy"] >= 1.0


def test_weights_that_are_no_numbers_are_a_collapse(tmp_path):
    trainer = trainer_of(tmp_path, actor__min_entropy=None, kl__max_kl=None)
    with torch.no_grad():
        trainer.actor.module.lm_head.weight[0, 0] = math.nan
    assert "collapsed: its KL from the reference is nan" in stopped(trainer)


# --- a reward that is not usable

BROKEN = {
    "NaN": (lambda n: torch.full((n,), math.nan), "not finite"),
    "one infinity": (lambda n: torch.cat([torch.zeros(n - 1), torch.tensor([math.inf])]), "1 of 16"),
    "a column": (lambda n: torch.zeros(n, 1), "shape (16, 1)"),
    "one number": (lambda n: torch.tensor(0.0), "shape ()"),
    "words": (lambda n: ["good"] * n, "list"),
    "an error": (lambda n: 1 / 0, "ZeroDivisionError"),
}


def with_own(reward: CombinedReward, own) -> CombinedReward:
    """The reward with one more term."""
    return CombinedReward([*reward.terms, Term("own", own)], reward.shared)


def break_reward(trainer: Trainer, kind: str, at: tuple[int, ...]) -> None:
    """Lets the reward go wrong in some iterations, in batches (the samples to look at are fewer)."""
    reward = trainer.reward

    def own(images, captions):
        if len(images) == 16 and trainer.progress.iteration in at:
            return BROKEN[kind][0](len(images))
        return torch.zeros(len(images))

    trainer.reward = with_own(reward, own)


@pytest.mark.parametrize("kind", BROKEN)
def test_a_bad_reward_stops_the_run_with_a_checkpoint_of_before_the_batch(kind, tmp_path):
    trainer = trainer_of(tmp_path)
    break_reward(trainer, kind, at=(1,))
    message = stopped(trainer)
    assert message.startswith("reward own ") and BROKEN[kind][1] in message
    assert latest_checkpoint(tmp_path).name == "step_000001" and len(untimed(tmp_path)) == 1


@pytest.mark.parametrize("kind", BROKEN)
def test_a_bad_reward_is_left_out_and_counted_if_asked(kind, tmp_path, undisturbed):
    trainer = trainer_of(tmp_path, reward__bad_result="skip")
    break_reward(trainer, kind, at=(1,))
    weights = {}
    iterate = trainer.iterate

    def watched(writer):
        weights[trainer.progress.iteration] = flat(trainer)
        return iterate(writer)

    trainer.iterate = watched
    with pytest.warns(UserWarning, match="iteration 1: batch left out: reward own"):
        trainer.run()
    records = untimed(tmp_path)
    assert [record["batches_left_out"] for record in records] == [0, 1, 0, 0]
    assert torch.equal(weights[1], weights[2]) and not torch.equal(weights[2], weights[3])
    assert all(records[1][name] is None for name in ("reward_mean", "kl", "policy_loss"))
    assert records[3]["images"] == 64
    first = {name: value for name, value in records[0].items() if name != "reward/own"}
    assert first == undisturbed[0] and records[2]["captions/drawn"] == undisturbed[2]["captions/drawn"]


def test_the_third_bad_batch_in_a_row_stops_the_run(tmp_path):
    trainer = trainer_of(tmp_path, num_iterations=7, reward__bad_result="skip")
    break_reward(trainer, "NaN", at=(0, 1, 3, 4, 5))
    with pytest.warns(UserWarning, match="left out"):
        message = stopped(trainer)
    assert "reward own" in message
    assert [record["batches_left_out"] for record in untimed(tmp_path)] == [1, 1, 0, 1, 1]
    assert resumed(tmp_path).progress.left_out == 2, "a resumed run goes on counting"


def test_a_report_can_be_written_of_a_run_with_a_batch_left_out(tmp_path):
    from dalle_ppo.report.page import write_report

    trainer = trainer_of(tmp_path, reward__bad_result="skip")
    break_reward(trainer, "NaN", at=(0,))
    with pytest.warns(UserWarning, match="left out"):
        trainer.run()
    assert write_report(tmp_path).is_file()


# --- a loss or gradient that is not finite


def break_gradient(trainer: Trainer, network: str, at: tuple[int, ...]) -> None:
    """Makes the gradient of one weight NaN in some iterations."""
    module = getattr(trainer, network).module
    parameter = next(p for p in module.parameters() if p.requires_grad)
    parameter.register_hook(lambda g: g * math.nan if trainer.progress.iteration in at else g)


def break_one_step(trainer: Trainer, iteration: int, name: str = "advantages") -> None:
    """Makes one advantage or return of one image NaN, in one iteration."""
    credit = trainer.objective.credit

    def broken(experience, config, state):
        filled, state = credit(experience, config, state)
        if trainer.progress.iteration == iteration:
            getattr(filled, name)[0, 0] = math.nan
        return filled, state

    trainer.objective = replace(trainer.objective, credit=broken)


def test_a_bad_step_is_skipped_and_counted(tmp_path):
    trainer = trainer_of(tmp_path)
    break_one_step(trainer, 1)
    trainer.run()
    assert [record["skipped_updates"] for record in untimed(tmp_path)] == [0, 1, 0, 0]
    assert torch.isfinite(flat(trainer)).all()


def test_a_bad_step_stops_the_run_if_asked(tmp_path):
    trainer = trainer_of(tmp_path, update__bad_step="stop")
    break_one_step(trainer, 1)
    message = stopped(trainer)
    assert (
        message.startswith("iteration 1: a loss or gradient was not finite") and "update.bad_step" in message
    )
    assert latest_checkpoint(tmp_path).name == "step_000002" and len(untimed(tmp_path)) == 2
    again = resumed(tmp_path, update__bad_step="stop")
    assert torch.equal(flat(again), flat(trainer)) and torch.isfinite(flat(again)).all()
    again.run()
    assert len(untimed(tmp_path)) == 4


def test_the_checkpoint_of_a_run_gone_wrong_takes_no_good_ones_place(tmp_path):
    trainer = trainer_of(tmp_path, update__bad_step="stop", keep_checkpoints=1)
    break_one_step(trainer, 2)
    stopped(trainer)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step_000002", "step_000003"]


@pytest.mark.parametrize("network, word", [("actor", "policy"), ("critic", "critic")])
def test_an_iteration_without_one_good_step_stops_the_run_in_any_case(network, word, tmp_path):
    trainer = trainer_of(tmp_path)
    break_gradient(trainer, network, at=(2,))
    message = stopped(trainer)
    assert message.startswith(f"iteration 2: no step of the {word} had a finite loss and gradient")
    assert latest_checkpoint(tmp_path).name == "step_000003"
    assert all(torch.isfinite(p).all() for p in trainer.critic.module.parameters())
    resumed(tmp_path).run()


def test_a_reward_made_of_a_network_may_want_gradients(tmp_path):
    """What it returns is no leaf of a graph: the numbers are logged and nothing is kept of it."""
    trainer, taste = trainer_of(tmp_path), torch.nn.Linear(1, 1)

    def own(images, captions):
        assert not torch.is_grad_enabled()
        return taste(images.mean(dim=(1, 2, 3))[:, None])[:, 0]

    trainer.reward = with_own(trainer.reward, own)
    trainer.run()
    assert "reward/own" in untimed(tmp_path)[-1]


def test_a_reference_that_changes_is_counted(tmp_path):
    trainer = trainer_of(tmp_path)
    trainer.run()
    assert {record["reference_changes"] for record in untimed(tmp_path)} == {0}
    with torch.no_grad():
        trainer.networks.reference.final_ln.bias[0].add_(1e-6)
        trainer.networks.reference.embed_tokens.weight[2, 3].mul_(-1)
    assert trainer.reference_changes() == 2


def test_the_critics_warm_up_is_no_broken_policy(tmp_path):
    trainer = trainer_of(tmp_path, critic__warmup_iterations=2)
    break_one_step(trainer, 0, "returns")
    trainer.run()
    assert [record["skipped_updates"] for record in untimed(tmp_path)] == [1, 0, 0, 0]


# --- what a resumed run takes from the settings


def test_a_resumed_run_goes_by_todays_settings(tmp_path):
    trainer_of(tmp_path, num_iterations=2).run()
    changes = {
        "kl__kl_coef": 0.7,
        "actor__weight_decay": 0.3,
        "critic__adam_eps": 1e-3,
        "credit__prompt_buffer_size": 20,
    }
    trainer = resumed(tmp_path, **changes)
    assert trainer.progress.credit.kl_coef == 0.7
    assert trainer.actor.optimizer.param_groups[0]["weight_decay"] == 0.3
    assert {group["eps"] for group in trainer.critic.optimizer.param_groups} == {1e-3}
    assert trainer.progress.credit.prompt_statistics.buffer_size == 20


def test_a_resumed_run_keeps_an_adaptive_coefficient(tmp_path):
    settings = {"kl__target": 1.0, "kl__horizon": 50, "actor__entropy_coef": 0.0}
    first = trainer_of(tmp_path, num_iterations=2, **settings)
    first.run()
    assert first.progress.credit.kl_coef != first.config.kl.kl_coef
    assert resumed(tmp_path, **settings).progress.credit.kl_coef == first.progress.credit.kl_coef


def test_cut_captions_are_counted_through_a_resume(tmp_path, monkeypatch):
    encode = TinyTokenizer.encode

    def cut_three(self, captions):
        return TextTokens(encode(self, captions).tokens, 3)

    monkeypatch.setattr(TinyTokenizer, "encode", cut_three)
    trainer_of(tmp_path, num_iterations=2).run()
    trainer = resumed(tmp_path)
    assert trainer.progress.captions_truncated == 6
    trainer.run()
    assert trainer.progress.captions_truncated == 12, "samples that are drawn to look at do not count"
    assert {record["captions_truncated"] for record in untimed(tmp_path)} == {3 / 16}


def test_nothing_is_warned_of_in_a_run_that_is_well(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer_of(tmp_path, reward__bad_result="skip").run()
