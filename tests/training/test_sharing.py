"""A batch shared by processes teaches what it teaches one process. Threads stand in for processes here."""

import copy
import warnings
from dataclasses import replace
from threading import get_ident

import numpy as np
import pytest
import torch
from thread_teams import thread_teams, together
from tiny_trainer import TINY_CONFIG, changed, tiny_trainer

from dalle_ppo.base.distributed import take_device
from dalle_ppo.base.halving import OutOfMemory
from dalle_ppo.base.team import ALONE, Team, check_same
from dalle_ppo.captions.source import CaptionRecord
from dalle_ppo.config.terms import balance
from dalle_ppo.evaluation.drawing import Setup, in_batches
from dalle_ppo.evaluation.files import write_batch
from dalle_ppo.models.dalle.family import DalleFamily
from dalle_ppo.policy.rollout import Means
from dalle_ppo.rewards.base import RewardResult, Term
from dalle_ppo.rl.records import Experience
from dalle_ppo.runs.metrics import SilentWriter
from dalle_ppo.training import update
from dalle_ppo.training.sharing import check_divides, own_rows, shared_reward
from dalle_ppo.training.trainer import Trainer

SHARED = {
    "rollout.rollout_batch_size": 12,
    "rollout.samples_per_caption": 2,
    "update.minibatch_size": 6,
    "update.microbatch_size": 4,
    "credit.prompt_min_count": 2,
    "actor.max_grad_norm": 1e9,
    "checkpoint_every": 100,
}


def trainers(size: int, changes: dict, dtype: torch.dtype) -> list[Trainer]:
    """One for each member of a team, with networks of a dtype."""
    made = []
    for team in thread_teams(size):
        trainer = tiny_trainer(changed(TINY_CONFIG, SHARED | changes), team=team)
        for module in (trainer.networks.actor, trainer.networks.reference, trainer.networks.critic):
            if module is not None:
                module.to(dtype)
        trainer.family.parts.encoder.to(dtype)
        made.append(trainer)
    return made


def iterations(made: list[Trainer], count: int) -> list[list[dict]]:
    teams = [trainer.team for trainer in made]
    if len(made) == 1:
        return [[made[0].iterate(SilentWriter()) for _ in range(count)]]
    return together(teams, lambda rank: [made[rank].iterate(SilentWriter()) for _ in range(count)])


def gradient(trainer: Trainer, name: str) -> torch.Tensor:
    """That of the only step so far, which AdamW keeps a tenth of."""
    state = getattr(trainer, name).optimizer.state
    return torch.cat([entry["exp_avg"].flatten() for entry in state.values()]) / (1 - 0.9)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


ESTIMATORS = ("gae", "rloo", "group", "per_prompt")
MORE = [
    pytest.param(advantage, size, dtype, marks=pytest.mark.slow)
    for advantage in ESTIMATORS
    for size in (2, 3)
    for dtype in (torch.float64, torch.float32)
]


@pytest.mark.parametrize("advantage, size, dtype", [("gae", 3, torch.float64), *MORE])
def test_the_gradient_is_that_of_one_process(advantage, size, dtype):
    """Given the same images; the last process's gradient is compared."""
    changes = {"credit.advantage": advantage, "update.minibatch_size": None}
    (alone,) = trainers(1, changes, dtype)
    team = trainers(size, changes, dtype)
    drawn = alone.collect()
    for trainer in (alone, *team):
        trainer.collect = lambda: drawn
    ((metrics,),) = iterations([alone], 1)
    of_team = iterations(team, 1)
    bound = 1e-12 if dtype == torch.float64 else 1e-5
    for name in ("actor", "critic") if advantage == "gae" else ("actor",):
        expected = gradient(alone, name)
        assert expected.norm() > 1e-3
        assert distance(gradient(team[-1], name), expected) < bound
    for name in (
        "kl",
        "advantage_std",
        "reward_mean",
        "policy_loss",
        "approx_kl",
        "gradient_norm",
        "ratio_max",
    ):
        assert of_team[0][0][name] == pytest.approx(metrics[name], rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_run_in_float64_is_that_of_one_process(size):
    """Captions, noise, the order of minibatches, statistics, the adaptive KL, the early stop."""
    changes = {"kl.target": 3.0, "update.epochs": 2, "update.target_kl": 0.5, "actor.entropy_coef": 0.0}
    (alone,) = trainers(1, changes, torch.float64)
    team = trainers(size, changes, torch.float64)
    drawn: dict[Trainer, list[Experience]] = {}
    for trainer in (alone, *team):
        trainer.score_passes = remembering(trainer, drawn.setdefault(trainer, []))
    (expected,), of_team = iterations([alone], 2), iterations(team, 2)
    for trainer in team:
        for own, one in zip(drawn[trainer], drawn[alone], strict=True):
            assert own.caption_ids == one.caption_ids and torch.equal(own.tokens, one.tokens)
        for a, b in zip(trainer.actor.module.parameters(), alone.actor.module.parameters(), strict=True):
            assert torch.allclose(a, b, rtol=1e-8, atol=1e-10)
        assert trainer.progress.credit.score_moments == alone.progress.credit.score_moments
        assert trainer.progress.credit.kl_coef == pytest.approx(alone.progress.credit.kl_coef, rel=1e-12)
    for own, one in zip(of_team[0], expected, strict=True):
        assert own.keys() == one.keys()
        for name, value in one.items():
            if isinstance(value, float) and not name.startswith(("seconds", "images_per", "memory")):
                assert own[name] == pytest.approx(value, rel=1e-6, abs=1e-9), name


def test_in_bfloat16_each_process_scores_the_microbatches_that_it_learns_from(monkeypatch):
    """Rounding depends on what is computed together, so else the first ratio is not 1."""
    seen: dict[tuple[int, bool], list[list]] = {}
    original = DalleFamily.score

    def score(self, policy, experience, **options):
        seen.setdefault((get_ident(), torch.is_grad_enabled()), []).append(experience.tokens.tolist())
        return original(self, policy, experience, **options)

    monkeypatch.setattr(DalleFamily, "score", score)
    half = {"update.dtype": "bfloat16", "update.microbatch_size": 2, "rollout.rollout_batch_size": 18}
    team = trainers(3, half, torch.float32)
    for of_process in iterations(team, 1):
        assert of_process[0]["ratio_first_minibatch_max_deviation"] == 0.0
    scored = [parts for (_, with_gradient), parts in seen.items() if not with_gradient]
    learned = [parts for (_, with_gradient), parts in seen.items() if with_gradient]
    assert len(scored) == 3 and [len(parts) for parts in scored] == [3, 3, 3]
    assert sorted(scored) == sorted(learned)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_how_many_tokens_flip_in_float32(size, record_property, capsys):
    """Sums in another order move weights by rounding, and a token that two codes nearly tie for may flip."""
    (alone,), team = trainers(1, {}, torch.float32), trainers(size, {}, torch.float32)
    drawn: dict[Trainer, list[Experience]] = {}
    for trainer in (alone, *team):
        trainer.score_passes = remembering(trainer, drawn.setdefault(trainer, []))
    iterations([alone], 3), iterations(team, 3)
    flipped = [int((a.tokens != b.tokens).sum()) for a, b in zip(drawn[team[0]], drawn[alone], strict=True)]
    record_property("flipped_tokens", flipped)
    with capsys.disabled():
        print(
            f"\n{size} processes: {flipped} of {drawn[alone][0].tokens.numel()} tokens flipped, by iteration"
        )
    assert flipped[0] == 0 and sum(flipped) <= 0.05 * 3 * drawn[alone][0].tokens.numel()
    for member in team:
        for own, first in zip(drawn[member], drawn[team[0]], strict=True):
            assert torch.equal(own.tokens, first.tokens), "the processes of a team never differ"


def remembering(trainer: Trainer, kept: list):
    original = trainer.score_passes

    def score_passes(experience: Experience) -> Experience:
        kept.append(experience)
        return original(experience)

    return score_passes


def test_what_one_process_cannot_do_ends_the_others_too():
    (first, second, third) = teams = thread_teams(3)

    def everywhere(rank: int):
        def work():
            if rank == 1:
                raise ValueError("one is broken")
            return rank

        return teams[rank].everywhere(work)

    assert [str(error) for error in together(teams, everywhere)] == ["one is broken"] * 3
    assert together(teams, lambda rank: teams[rank].on_first(lambda: rank + 7)) == [7, 7, 7]
    facts = [{"seed": 1}, {"seed": 1}, {"seed": 2}]
    errors = together(teams, lambda rank: check_same(teams[rank], facts[rank], "mend it"))
    assert {str(error) for error in errors} == {"process 2 has seed 2, but process 0 has 1; mend it"}
    assert first.is_first and not second.is_first and third.mean is not None
    assert together(teams, lambda rank: teams[rank].mean(float(rank))) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("name", ["actor", "critic"])
def test_no_checkpoint_is_written_where_processes_have_learned_different_weights(name, tmp_path):
    """One bit is enough, of whichever network."""
    made = [
        tiny_trainer(changed(TINY_CONFIG, SHARED), tmp_path / "run", team=team) for team in thread_teams(2)
    ]
    teams = [trainer.team for trainer in made]
    together(teams, lambda rank: made[rank].save())
    weights = next(iter(getattr(made[1], name).module.state_dict().values()))
    weights.view(torch.int32).flatten()[0] ^= 1
    found = together(teams, lambda rank: made[rank].save())
    for error in found:
        assert f"process 1 has weights of the {name} with the hash" in str(error)


def test_memory_that_runs_out_in_the_anchor_of_one_process_ends_all(monkeypatch):
    """Else its message would meet another one that the others wait for."""
    anchored = {"anchor.coef": 0.7, "anchor.num_images": 12, "anchor.minibatch_size": 8}
    team = trainers(2, anchored, torch.float32)
    original, broken = DalleFamily.score, team[1].networks.actor

    def score(family, policy, rows, **options):
        if policy is broken and torch.is_grad_enabled() and "extra" not in options:  # of the anchor
            raise torch.OutOfMemoryError("injected")
        return original(family, policy, rows, **options)

    monkeypatch.setattr(DalleFamily, "score", score)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = iterations(team, 1)
    assert all(isinstance(error, OutOfMemory) for error in found), found
    assert {"computing gradients of one image at a time" in str(error) for error in found} == {True}


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_pass_that_only_helps_the_others_is_no_larger_than_a_microbatch(size, monkeypatch):
    """A process without rows repeats some of the first caption; none of these count."""
    seen = []
    original = DalleFamily.score

    def score(family, policy, rows, **options):
        if torch.is_grad_enabled():
            seen.append((get_ident(), len(rows)))
        return original(family, policy, rows, **options)

    monkeypatch.setattr(DalleFamily, "score", score)
    settings = {"rollout.samples_per_caption": 6, "update.minibatch_size": None}
    team = trainers(2, settings | {"update.microbatch_size": size}, torch.float32)
    monkeypatch.setattr(update, "is_sharded", lambda network: True)  # passes are equally many
    for trainer in team:
        one = lambda images, config: images.select(torch.arange(size + 1))  # noqa: E731
        trainer.objective = replace(trainer.objective, select=one, compares_images=True)
    iterations(team, 1)
    assert len({thread for thread, _ in seen}) == 2 and len(seen) == 4
    assert max(count for _, count in seen) == size


def test_shares_cover_everything_once_and_in_order():
    for size in (1, 2, 3, 5):
        teams = thread_teams(size)
        for count in (size, 7, 12):
            if count < size:
                continue
            rows = torch.arange(count)
            assert [i for team in teams for i in rows[team.share(count)].tolist()] == list(range(count))
    assert thread_teams(3)[1].share(2) == slice(0, 2), "too few: every process does all"


@pytest.mark.parametrize("size", [2, 3, 4])
def test_pairs_stay_together_and_every_row_has_one_owner(size):
    batch = Experience(
        ("",) * 8, ("",) * 8, ("",) * 8, torch.arange(4).repeat_interleave(2), None, None, None
    )
    batch = replace(batch, tokens=torch.zeros(8, 1))
    minibatch = torch.tensor([6, 7, 0, 1, 4, 5])
    shares = [own_rows(minibatch, batch, True, team).tolist() for team in thread_teams(size)]
    assert [row for share in shares for row in share] == minibatch.tolist()
    assert all(len(share) % 2 == 0 for share in shares)


def test_a_batch_that_cannot_be_shared_is_refused():
    config = changed(TINY_CONFIG, SHARED)
    with pytest.raises(ValueError, match=r"5 processes cannot share the 6 captions .*multiple of 10"):
        check_divides(config, thread_teams(5)[0])
    config = changed(TINY_CONFIG, SHARED | {"update.minibatch_size": 4})
    with pytest.raises(ValueError, match=r"update\.minibatch_size is 4, which 3 processes"):
        check_divides(config, thread_teams(3)[0])


@pytest.mark.parametrize(
    "name, counts, nccl, expected",
    [
        ("auto", (2, 0), True, "process 1 has no GPU of its own: it is number 1 on its machine, which has 0"),
        ("cuda", (1, 1), True, "process 1 has no GPU of its own: it is number 1 on its machine, which has 1"),
        ("cuda", (0, 0), True, "process 0 has no GPU of its own"),
        ("auto", (2, 2), False, "NCCL is missing"),
        ("cuda:1", (2, 2), True, "device is cuda:1; each of 2 processes takes a GPU of its own"),
        ("auto", (0, 0), False, None),
        ("cpu", (2, 2), False, None),
    ],
)
def test_processes_that_lack_a_gpu_are_refused_by_all(name, counts, nccl, expected, monkeypatch):
    """Threads share one torch, so the number of GPUs is that of the thread that asks."""
    import torch.distributed

    asked = {}
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: asked[get_ident()] > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: asked[get_ident()])
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: nccl)
    teams = thread_teams(2)

    def take(rank: int) -> None:
        asked[get_ident()] = counts[rank]
        take_device(teams[rank], name)

    for outcome in together(teams, take):
        assert outcome is None if expected is None else expected in str(outcome)


def test_images_that_a_term_compares_are_not_separated():
    """A caption that is drawn twice lies in both shares; a term over the batch needs all of it."""
    seen: dict[str, list[int]] = {}

    def reward_of(label: str):
        def reward(images, captions, metadata):
            seen.setdefault(label, []).append(len(images))
            return RewardResult(images.flatten(1).sum(1), {}, None, {})

        reward.terms = [Term("pairs", None, images_per_caption=2 if label == "pairs" else 1)]
        return reward

    config, whole = changed(TINY_CONFIG, SHARED), torch.arange(8, dtype=torch.uint8)[:, None, None, None] * 30
    for captions, label, sizes in (
        ("aabbccdd", "single", [4, 4]),
        ("aabbccdd", "pairs", [4, 4]),
        ("aabbaacc", "pairs", [8]),
        ("aabbaacc", "single", [4, 4]),
    ):
        seen.clear()
        batch = Experience(tuple(captions), ("",) * 8, tuple(captions), torch.arange(8), None, None, whole)
        teams, reward = thread_teams(2), reward_of(label)
        results = together(teams, lambda rank: shared_reward(reward, config, batch, Means(teams[rank])))  # noqa: B023
        assert seen[label] == sizes, (captions, label)
        for result in results:
            assert torch.equal(result.total, whole.flatten() / 255), (captions, label)
    settings = {"attributes": {"a": "a boat", "b": "a car"}}
    assert balance.Settings(**settings).compares_batch
    assert not balance.Settings(**settings, over="caption").compares_batch


def test_batches_of_an_evaluation_are_divided_and_kept_once(tmp_path):
    """An interrupted evaluation has left batch 1; three processes draw the five others."""
    captions = [CaptionRecord(f"caption {i}", "T", str(i)) for i in range(11)]
    evaluation = {"evaluation.batch_size": 4, "evaluation.samples_per_caption": 2}
    drawn: list[tuple[str, int]] = []

    def side(folder: str, team: Team):
        def draw(number: int, chunk):
            drawn.append((folder, number))
            return {"reward": np.array([float(c.id) for c in chunk]).repeat(2)}

        config = changed(TINY_CONFIG, evaluation)
        setup = Setup(config, None, None, None, captions, tmp_path / folder, {"a": 1}, team)
        return in_batches("policy", "weights", draw, setup)

    alone = side("alone", ALONE)
    assert drawn == [("alone", number) for number in range(6)]
    kept = alone.batches.parent.parent / "team" / alone.batches.name
    write_batch(kept / "000001.npz", {"reward": np.array([2.0, 2.0, 3.0, 3.0])})
    drawn.clear()
    teams = thread_teams(3)
    for own in together(teams, lambda rank: side("team", teams[rank])):
        assert np.array_equal(own.columns["reward"], alone.columns["reward"])
        assert len(own.labels["caption_id"]) == 22
    assert sorted(drawn) == [("team", number) for number in (0, 2, 3, 4, 5)]
    assert sorted(path.name for path in kept.iterdir()) == [f"{number:06d}.npz" for number in range(6)]


def test_what_does_not_fit_in_one_process_is_told_by_all():
    """The others would wait for its images, and nobody would lead them out of it."""
    team = trainers(2, {}, torch.float32)

    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("injected")

    team[1].family = copy.copy(team[1].family)
    object.__setattr__(team[1].family, "draw", full)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = together([trainer.team for trainer in team], lambda rank: team[rank].collect())
    assert all(isinstance(error, OutOfMemory) for error in found), found
    assert {"drawing one image at a time" in str(error) for error in found} == {True}
