"""What each process of tests/training/test_sharded.py does: compares networks in parts with whole ones."""

import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from tiny_trainer import TINY_CONFIG, changed, tiny_trainer

from dalle_ppo.base.distributed import form_team
from dalle_ppo.base.team import Team
from dalle_ppo.config.objective import find_objective
from dalle_ppo.models.sharding import is_divided, own_part, whole
from dalle_ppo.rl.records import Experience
from dalle_ppo.runs.checkpoints import Checkpoint, load_checkpoint
from dalle_ppo.runs.metrics import SilentWriter
from dalle_ppo.training.checkpointing import shared_checkpoint
from dalle_ppo.training.memory import bytes_of
from dalle_ppo.training.trainer import Trainer

SETTINGS = {
    "rollout.rollout_batch_size": 12,
    "rollout.samples_per_caption": 2,
    "update.minibatch_size": 6,
    "update.microbatch_size": 2,
    "actor.max_grad_norm": 1e9,
    "checkpoint_every": 100,
}
# In bfloat16, rounding depends on what is computed together.
BOUNDS = {torch.float64: 1e-12, torch.float32: 1e-5, "half": 0.05}


def trainers(
    changes: dict, dtype: torch.dtype, team: Team, folder: str = "unused"
) -> tuple[Trainer, Trainer]:
    """One that is alone and one of the team, with the same images."""
    config = changed(TINY_CONFIG, SETTINGS | changes)
    alone = tiny_trainer(config, Path(f"{folder}_alone_{team.rank}"), dtype=dtype)
    in_parts = tiny_trainer(
        changed(config, {"update.shard": "full"}), Path(f"{folder}_team"), team=team, dtype=dtype
    )
    return alone, in_parts


def same_images(alone: Trainer, in_parts: Trainer) -> None:
    drawn = alone.collect()
    for trainer in (alone, in_parts):
        trainer.collect = lambda: drawn


def learn_from_three(*trainers: Trainer) -> None:
    for trainer in trainers:
        select = trainer.objective.select
        three = lambda images, config, select=select: select(images, config).select(torch.arange(3))  # noqa: E731
        trainer.objective = replace(trainer.objective, select=three)


def flat(tensors) -> torch.Tensor:
    return torch.cat([whole(tensor.detach()).flatten() for tensor in tensors])


def first_moments(trainer: Trainer, name: str) -> torch.Tensor:
    """After one step, a tenth of its gradient."""
    optimizer = getattr(trainer, name).optimizer
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return flat(optimizer.state[parameter]["exp_avg"] for parameter in parameters)


def check_close(own: torch.Tensor, expected: torch.Tensor, bound: float) -> None:
    assert expected.norm() > 1e-4
    distance = float((own - expected).norm() / expected.norm())
    assert distance < bound, distance


def check_gradient(changes: dict, dtype: torch.dtype, team: Team) -> None:
    """One step on the same images, in parts and whole."""
    alone, in_parts = trainers(
        {"update.minibatch_size": None, "update.microbatch_size": 4} | changes, dtype, team
    )
    same_images(alone, in_parts)
    if alone.config.objective == "best_of_n":
        learn_from_three(alone, in_parts)
    bound = BOUNDS["half" if alone.config.update.dtype == "bfloat16" else dtype]
    if alone.config.objective == "online_dpo":
        bound = 1e-3  # two steps, and the first one divides by the size of its gradient
    expected, metrics = (trainer.iterate(SilentWriter()) for trainer in (alone, in_parts))
    for name in ("actor", "critic") if alone.critic else ("actor",):
        parameters = [p for p in getattr(in_parts, name).module.parameters() if len(p) >= team.size]
        assert parameters and all(is_divided(p) and own_part(p).numel() < p.numel() for p in parameters)
        check_close(first_moments(in_parts, name), first_moments(alone, name), bound)
    for name in ("kl", "entropy", "policy_loss", "gradient_norm", "ratio_max", "reference_changes"):
        assert abs(metrics[name] - expected[name]) < max(bound, 1e-5) * (1 + abs(expected[name])), name


def check_checkpoints(dtype: torch.dtype, team: Team, folder: str) -> None:
    """What one process has begun goes on in parts, and the other way round, bit for bit."""
    alone, in_parts = trainers({"update.epochs": 2}, dtype, team, folder)
    expected = alone.iterate(SilentWriter())
    in_parts.iterate(SilentWriter())
    of_alone = load_checkpoint(alone.save())
    in_parts.load(of_alone)
    for name in ("actor", "critic"):
        one, other = getattr(alone, name), getattr(in_parts, name)
        assert torch.equal(flat(one.module.parameters()), flat(other.module.parameters()))
        assert torch.equal(first_moments(alone, name), first_moments(in_parts, name))
    in_parts.save()
    written = in_parts.run_dir / "checkpoints" / f"step_{expected['iteration'] + 1:06d}"
    of_team = load_checkpoint(written)
    assert of_team.tensors.keys() == of_alone.tensors.keys()
    for group, tensors in of_alone.tensors.items():
        assert tensors.keys() == of_team.tensors[group].keys()
        assert all(torch.equal(tensor, of_team.tensors[group][name]) for name, tensor in tensors.items())
    check_own_parts(load_checkpoint(written), in_parts, team)
    fresh, _ = trainers({"update.epochs": 2}, dtype, team)
    fresh.load(of_team)
    for trainer in (alone, fresh, in_parts):
        trainer.iterate(SilentWriter())
    assert torch.equal(flat(alone.actor.module.parameters()), flat(fresh.actor.module.parameters()))
    check_close(*(flat(t.actor.module.parameters()) for t in (in_parts, alone)), 1e-9)


def check_own_parts(checkpoint: Checkpoint, in_parts: Trainer, team: Team) -> None:
    """A process that is sent a checkpoint holds no more of it than its part, and goes on from that."""
    given = checkpoint if team.is_first else None
    sent = shared_checkpoint(given, team, in_parts.actor, in_parts.critic)
    of_whole = sum(t.nbytes for tensors in checkpoint.tensors.values() for t in tensors.values())
    parts = [own_part(t) for tensors in sent.tensors.values() for t in tensors.values()]
    held = sum(part.untyped_storage().nbytes() for part in parts)
    assert held == of_whole if team.is_first else held < 1.1 * of_whole / team.size, (held, of_whole)
    expected = flat(in_parts.actor.module.parameters()), first_moments(in_parts, "critic")
    with torch.no_grad():
        for parameter in in_parts.actor.module.parameters():
            parameter.zero_()
    in_parts.load(sent)
    assert torch.equal(flat(in_parts.actor.module.parameters()), expected[0])
    assert torch.equal(first_moments(in_parts, "critic"), expected[1])


def check_samplers(team: Team) -> None:
    """The sampler's copy is the actor, whole, in its dtypes."""
    alone, in_parts = trainers({}, torch.float32, team)
    for dtype in ("float32", "bfloat16"):
        one, other = (t.family.sampler_weights(t.actor.module, dtype).state_dict() for t in (alone, in_parts))
        assert one.keys() == other.keys()
        assert all(
            torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one
        )
    drawn: list[Experience] = [trainer.collect() for trainer in (alone, in_parts)]
    assert torch.equal(drawn[0].tokens, drawn[1].tokens)


def check_passing(team: Team) -> None:
    """While a layer computes, it is whole as its network stores it, and no larger than the forecast says."""
    half = {"update.dtype": "bfloat16", "model.frozen_dtype": "bfloat16"}
    alone, in_parts = trainers(half, torch.float32, team)
    held = {}

    def note(name: str, layer: torch.nn.Module, *_) -> None:
        assert not any(is_divided(parameter) for parameter in layer.parameters())
        held[name] = sum(parameter.nbytes for parameter in layer.parameters())

    for name in ("actor", "reference"):
        layer = getattr(in_parts.networks, name).layers[0]
        for part in list(layer.modules())[1:]:  # these are called within the layer's own pass
            part.register_forward_hook(partial(note, name, layer))
    in_parts.score_passes(alone.collect())
    numbers = sum(parameter.numel() for parameter in alone.networks.actor.layers[0].parameters())
    assert held["actor"] == 4 * numbers > 1.5 * held["reference"]
    assert all(bytes_of(getattr(alone.networks, name).layers[0]) == size for name, size in held.items())


CASES = {
    "all": {},
    "few": {"actor.trainable": "cross_keys_values", "policy.guidance": 1.0},
    "low": {"update.gradient_checkpointing": True, "update.logits_chunk": 7},
    "detached": {"policy.detach_unconditional": True, "actor.trainable": "cross_attention"},
    "half": {"update.dtype": "bfloat16", "model.frozen_dtype": "bfloat16", "update.microbatch_size": 2},
    "half_low": {"update.dtype": "bfloat16", "update.gradient_checkpointing": True, "update.logits_chunk": 7},
    "rloo": {"update.microbatch_size": 1, "credit.advantage": "rloo"},
    # Three pairs of a minibatch leave one of two processes without rows in the last pass.
    "pairs": find_objective("online_dpo").defaults
    | {
        "objective": "online_dpo",
        "rollout.rollout_batch_size": 24,
        "rollout.samples_per_caption": 4,
        "update.minibatch_size": 6,
        "update.microbatch_size": 2,
        "update.epochs": 1,
    },
    # Three of the best images are learned from: two processes have 3 and 2 chunks of tokens.
    "chunks": find_objective("best_of_n").defaults
    | {
        "objective": "best_of_n",
        "rollout.rollout_batch_size": 24,
        "update.epochs": 1,
        "update.logits_chunk": 7,
    },
}


def main(folder: str, *cases: str) -> None:
    torch.set_num_threads(1)
    team = form_team(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    for case in cases:
        if case == "checkpoints":
            check_checkpoints(torch.float64, team, folder)
        elif case == "samplers":
            check_samplers(team)
        elif case == "passing":
            check_passing(team)
        else:
            name, _, dtype = case.partition(":")
            check_gradient(CASES[name], getattr(torch, dtype or "float64"), team)
    team.close()
    team.watch.leave()
    print("done", flush=True)
    os._exit(0)  # as a command's processes end: threads of torch's exchanges can abort a normal end


if __name__ == "__main__":
    main(*sys.argv[1:])
